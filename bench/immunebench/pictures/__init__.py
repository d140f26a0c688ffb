"""Reads pictures with captions from folders, data sets and submitted files."""

"""Turns folders, data sets and submitted files into pictures with captions."""

"""Combine all records of a suite into one board."""

"""Intervals, ranks and paired differences by resampling."""

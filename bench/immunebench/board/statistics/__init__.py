"""Intervals, ranks and paired differences: Student's t by strata, and bootstraps."""

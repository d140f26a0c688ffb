"""Confidence intervals, ranks and paired differences: stratified Student's t, and bootstraps."""

"""Confidence intervals, ranks and paired differences by stratified Student's t."""

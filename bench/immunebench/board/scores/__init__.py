"""Compute the scores of one defense from its records: inputs, formulas, task scores, rows, checks of controls."""

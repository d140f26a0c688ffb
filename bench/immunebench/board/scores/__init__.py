"""From records to scores of one defense: what is read, formulas, tasks, rows, controls."""

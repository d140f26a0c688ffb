"""Metrics: `table` lists them all and computes any of them; each is a plain function in a module beside it."""

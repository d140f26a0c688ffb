"""Schemas of the TOML files (tasks, suites, profiles, manifests, models), and the thresholds of scoring."""

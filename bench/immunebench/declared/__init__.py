"""Schemas of the TOML files: tasks, suites, profiles, manifests, models; and the scoring rules."""

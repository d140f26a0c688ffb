"""The catalogue: finds entries, tasks, suites and profiles, and reads their manifests without running any code."""

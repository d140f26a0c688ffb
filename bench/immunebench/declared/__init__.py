"""What TOML files may say (tasks, suites, profiles, manifests, models), and the gates of scoring."""

"""What this machine can run, and what a method takes on a profile."""

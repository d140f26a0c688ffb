"""Artifacts on disk by digest: locks, manifests, planned stages, and checkpoints of unfinished ones."""

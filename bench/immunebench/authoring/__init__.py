"""Writes what somebody adds: new tasks, entries, artefacts, and exported models and pictures."""

"""Errors, shared types, wording and the probe of this machine; knows nothing of the benchmark."""

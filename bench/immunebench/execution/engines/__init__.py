"""Executors of several machines: Ray and Slurm. Each is an extra, imported when it is asked for."""

"""Frozen boards, differences between two of them, and how to cite a number."""

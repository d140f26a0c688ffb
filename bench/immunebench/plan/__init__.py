"""Expand a suite to its cells and the cells to one graph of stages, and estimate its cost."""

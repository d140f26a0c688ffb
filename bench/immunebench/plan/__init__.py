"""From a suite to its cells, from cells to the graph of stages, and what that will cost."""

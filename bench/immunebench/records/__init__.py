"""The outcome of each cell as one JSON line, and its contact sheet."""

"""The outcome of a cell as one JSON line, and its contact sheet."""

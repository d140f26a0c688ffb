"""Reads what the board is made of: records, published figures, measured capacity; all are checked."""

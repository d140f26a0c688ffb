"""The embedded world ``mini``: procedurally drawn pictures, two small bases trained on them, and their judges."""

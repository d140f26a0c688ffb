"""Where weights come from, how they are verified, and what a folder of a base must hold."""

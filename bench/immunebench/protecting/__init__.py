"""Protects somebody's own pictures by a defense of this suite, and says what is known of how long that lasts."""

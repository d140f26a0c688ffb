"""Releases (frozen boards), comparisons of two boards, and citations of scores."""

"""Render a board as tables: terminal, Markdown, CSV, JSON and LaTeX."""

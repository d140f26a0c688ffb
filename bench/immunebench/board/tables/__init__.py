"""A board as tables: terminal, Markdown, CSV, JSON, LaTeX, and the document around them."""

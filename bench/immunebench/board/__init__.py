"""Turn records into scores, tables, plots, site pages and releases; pure functions without torch."""

"""From records to scores, tables, plots, pages and releases; pure functions without torch."""

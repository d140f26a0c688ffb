"""All records of a suite become one board."""

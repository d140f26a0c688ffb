"""The commands of ``immunebench``: parse, call, print; one file for each group."""

"""The command line of ``immunebench``: one module per group of commands."""

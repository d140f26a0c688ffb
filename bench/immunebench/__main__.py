"""Entry point of ``python -m immunebench``."""

from __future__ import annotations

from immunebench.cli.main import main

if __name__ == "__main__":
    main()

"""Entry point of ``immunebench`` and of ``python -m immunebench``."""

from __future__ import annotations

import sys

#: Exit status after Ctrl-C, as shells have it: 128 and the number of the signal.
INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback from the first import on."""
    try:
        from immunebench.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

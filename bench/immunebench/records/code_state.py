"""The version-control state of the source code that made a record."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import Any


@functools.cache
def _source_state() -> tuple[str | None, bool | None]:
    # Variables such as GIT_DIR would point git to another repository than the package's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # The checkout's code is already running, so it is trusted whoever owns it; programs in its git config are not run.
    trusted = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false")

    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", *trusted, "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        # A package installed inside another project's checkout must not report that project's commit.
        if git("ls-files", "--error-unmatch", "__init__.py") is None:
            return None, None
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no", ".")
    except OSError:
        return None, None
    return commit, None if changes is None else bool(changes)


def source_state() -> dict[str, Any]:
    """Return commit and dirty flag of the package's checkout, both None if there is no checkout."""
    commit, dirty = _source_state()
    return {"commit": commit, "dirty": dirty}

"""`Shelf`: the bookmarks of a stage that runs in a box, kept by the parent.

The stage writes a bookmark into a folder of its box and waits; the parent copies the files into the store, with their
SHA-256 and with time and memory as it measured them itself. The next attempt is lent a copy. What a bookmark holds is
read by nothing but the same stage in its box.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from immunebench.bases.weights import sha256
from immunebench.box.folders import Untidy, regular_files
from immunebench.store.bookmark import Spent
from immunebench.store.files import fsync, read_json, write_json

_NAMES = re.compile(r"bookmark\.json|state\.json|tensors-\d{5}\.safetensors|out/[\w.-]{1,100}")
_MOST_FILES = 2_000
_TOKEN = "token.json"


class Shelf:
    """The bookmarks of one stage; the caller holds the lock of its digest.

    Parameters
    ----------
    folder
        Where the store keeps them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: Names the stage to itself, since its digest would tell it which task it works on.
        self.token = str((read_json(folder / _TOKEN) or {}).get("token") or uuid.uuid4().hex)

    def lend(self, mark: Path) -> tuple[Spent | None, str]:
        """Copy the newest bookmark into a folder of the box.

        Returns
        -------
        What the attempts before it took, None where there is no bookmark; and a line where one cannot be used.
        """
        for page in sorted((p for p in self._folder.glob("*") if p.name.isdecimal()), reverse=True):
            note = read_json(self._folder / f"{page.name}.json") or {}
            files, spent = note.get("files"), note.get("spent")
            if not isinstance(files, dict) or not isinstance(spent, dict):
                return None, "the bookmark is not used: it was made by another way of running"
            try:
                for name, digest in files.items():
                    target = mark / page.name / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(page / name, target)
                    if sha256(target) != digest:
                        raise Untidy(name)
                return Spent(**spent), ""
            except (OSError, TypeError, Untidy) as error:
                shutil.rmtree(mark / page.name, ignore_errors=True)
                return None, f"the bookmark is not used: it is damaged ({error})"
        return None, ""

    def keep(self, mark: Path, page: str, spent: Spent) -> str:
        """Copy a bookmark that the stage wrote, and remove the one before; return a line where that fails."""
        new = self._folder / f".new.{os.getpid()}"
        try:
            sizes = regular_files(mark / page, _MOST_FILES)
            odd = next((name for name in sizes if not _NAMES.fullmatch(name)), None)
            if odd is not None:
                raise Untidy(f"left {odd!a}, which is no file of a bookmark")
            shutil.rmtree(new, ignore_errors=True)
            files = {}
            for name in sizes:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(mark / page / name, new / name, follow_symlinks=False)
                fsync(new / name)
                files[name] = sha256(new / name)
            (new / "out").mkdir(exist_ok=True)
            write_json(self._folder / _TOKEN, {"token": self.token})
            write_json(self._folder / f"{int(page):06d}.json", {"files": files, "spent": asdict(spent)})
            shutil.rmtree(self._folder / f"{int(page):06d}", ignore_errors=True)
            os.replace(new, self._folder / f"{int(page):06d}")
            fsync(self._folder)
        except (OSError, Untidy) as error:
            shutil.rmtree(new, ignore_errors=True)
            return f"no bookmark could be kept: {' '.join(str(error).split())}"
        for old in self._folder.glob("*"):
            if old.name.split(".")[0].isdecimal() and int(old.name.split(".")[0]) != int(page):
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() else _unlink(old)
        return ""


def _unlink(file: Path) -> None:
    with suppress(OSError):
        file.unlink()

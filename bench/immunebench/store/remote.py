"""`Remote`: object storage behind a store, through fsspec; nothing is ever listed.

Layout below the URL::

    manifests/<ab>/<digest>.json   one artifact: written last, so that without it there is none
    blobs/<ab>/<sha256>            a file of artifacts, uploaded once however many have it
    failures/<digest>.json         why a stage failed
    leases/<name>                  who makes what at this moment
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from immunebench.core.errors import UsageError
from immunebench.store.files import json_text, unique
from immunebench.store.leases import FolderBoard
from immunebench.store.manifest import MANIFEST, artifact_fault

#: Most bytes of a text: manifests, notes, leases.
_LONGEST = 1 << 26


class Remote:
    """An object store at a URL; also the board of its leases (`immunebench.store.leases.Board`).

    Parameters
    ----------
    url
        Protocol, bucket and prefix, such as ``s3://bucket/immunebench``. Credentials and endpoints are those of the
        protocol's own library.

    Raises
    ------
    UsageError
        The protocol is unknown, or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            # Listings that the library remembers would hide what other machines write.
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise UsageError(f"needs a library that is not installed ({error}):", field="--store", value=url) from error
        except ValueError as error:
            raise UsageError(f"is no location of a store ({error}):", field="--store", value=url) from error

    # Artifacts

    def has(self, digest: str) -> bool:
        """Return whether an artifact is published; its bytes are not verified."""
        return self._exists(_manifest(digest))

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """Return the manifest of a published artifact, None where it is missing or no JSON object."""
        return self._json(_manifest(digest))

    def fetch(self, digest: str, root: Path) -> Path | None:
        """Bring an artifact into the store below `root`; None where there is none or it is damaged.

        The caller holds the digest's lock.
        """
        manifest = self.manifest(digest)
        if manifest is None:
            return None
        try:
            stage, files = str(manifest["stage"]), dict(manifest["files"])
        except (KeyError, TypeError, ValueError):
            return None
        final = root / stage / digest[:2] / digest
        # Of the form stage/ab/digest, since a manifest is held against the folder that it lies in.
        draft = root / "tmp" / f"{digest}.{unique()}" / stage / digest[:2] / digest
        draft.mkdir(parents=True)
        try:
            for name, entry in files.items():
                place = draft / name
                if not place.resolve().is_relative_to(draft.resolve()):
                    return None
                place.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._path(_blob(entry["sha256"])), str(place))
            (draft / MANIFEST).write_text(json_text(manifest) + "\n", "utf-8")
            if artifact_fault(draft) is not None:
                return None
            final.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
        except FileNotFoundError:  # A manifest whose blobs somebody removed.
            return None
        finally:
            shutil.rmtree(draft.parents[2], ignore_errors=True)
        return final

    def upload(self, folder: Path) -> None:
        """Publish an artifact of the local store: blobs that are not there yet, then its manifest."""
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        for name, entry in manifest["files"].items():
            blob = _blob(entry["sha256"])
            if not entry["size"] or not self._exists(blob):
                self._fs.put_file(str(folder / name), self._place(blob))
        self.write(_manifest(folder.name), json_text(manifest) + "\n")

    def forget(self, digest: str) -> None:
        """Remove the manifest of a damaged artifact and its blobs, so that it is made and uploaded anew."""
        for entry in ((self.manifest(digest) or {}).get("files") or {}).values():
            self.remove(_blob(str(entry["sha256"])))
        self.remove(_manifest(digest))

    # Failures

    def failure(self, digest: str) -> dict[str, Any] | None:
        """Return the note of a stage's last failure."""
        return self._json(f"failures/{digest}.json")

    def fail(self, digest: str, note: dict[str, Any] | None) -> None:
        """Note why a stage failed; None removes the note."""
        name = f"failures/{digest}.json"
        if note is None:
            self.remove(name)
        else:
            self.write(name, json_text(note) + "\n")

    # Texts, leases among them

    def create(self, name: str, text: str) -> bool:
        """Write a new lease whole; false where there is one already."""
        place = self._place(f"leases/{name}")
        if self._is_folder:  # fsspec looks first and writes then.
            return FolderBoard(Path(place).parent).create(name, text)
        try:
            self._fs.pipe_file(place, text.encode(), mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # S3's answer to a conditional write that came second; its library has no exception of its own for it.
            if not any(word in str(error) for word in ("PreconditionFailed", "pre-condition", "ConditionalRequest")):
                raise
            return False
        return True

    def read(self, name: str) -> str | None:
        """Return the text of a lease, None where there is none."""
        return self._text(f"leases/{name}")

    def write(self, name: str, text: str) -> None:
        """Replace a text; one without a folder is a lease."""
        place = self._place(name if "/" in name else f"leases/{name}")
        if self._is_folder:  # As whole as an object: who reads meanwhile must not take half a manifest for damage.
            FolderBoard(Path(place).parent).write(Path(place).name, text)
        else:
            self._fs.pipe_file(place, text.encode())

    def remove(self, name: str) -> None:
        """Remove a text, if it is there; one without a folder is a lease."""
        try:
            self._fs.rm_file(self._path(name if "/" in name else f"leases/{name}"))
        except FileNotFoundError:
            return

    @property
    def _is_folder(self) -> bool:
        """Whether the objects are files of a folder, which fsspec writes neither whole nor once."""
        return self.url.startswith(("file:", "local:"))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _place(self, name: str) -> str:
        """Return a path to write to. Folders are only made where they exist: S3's library would look for the bucket."""
        place = self._path(name)
        if self._is_folder:
            self._fs.makedirs(self._fs._parent(place), exist_ok=True)
        return place

    def _exists(self, name: str) -> bool:
        # A byte, since asking S3's library whether an object exists lists the bucket where it does not.
        try:
            self._fs.cat_file(self._path(name), start=0, end=1)
        except FileNotFoundError:
            return False
        return True

    def _text(self, name: str) -> str | None:
        try:
            # With an end, since S3's library else asks for the size first, and lists where there is no object.
            return bytes(self._fs.cat_file(self._path(name), start=0, end=_LONGEST)).decode("utf-8")
        except FileNotFoundError:
            return None

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            value = json.loads(self._text(name) or "null")
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


def _manifest(digest: str) -> str:
    return f"manifests/{digest[:2]}/{digest}.json"


def _blob(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"

"""What the model hub gives: a safetensors file held to the SHA-256 that the hub itself states, or why there is none."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path


def safetensors_of(repository: str, name: str) -> bytes:
    """A safetensors file of the hub's main branch, as it is there.

    No digest of these files has been published elsewhere, so none stands here. The hub is asked which commit is the
    newest and for the file's SHA-256 in it, and what arrives of that commit must have it: that rules out damage on
    the way, not another file at the source. The key of a score holds the SHA-256 of the weights that it read.

    Raises
    ------
    OSError
        The hub states no SHA-256, what arrives has another one, or is no safetensors. Errors of the hub's client pass.
    """
    import huggingface_hub as hub

    stated = hub.get_hf_file_metadata(hub.hf_hub_url(repository, name))
    if stated.commit_hash is None or not re.fullmatch("[0-9a-f]{64}", stated.etag or ""):
        raise OSError(f"the hub states no SHA-256 of {repository}/{name}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(hub.hf_hub_download(repository, name, revision=stated.commit_hash, local_dir=folder))
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != stated.etag:
            raise OSError(f"{repository}/{name} has another SHA-256 than the hub states")
        _check(file)
    return content


def why_not(error: Exception) -> str:
    """Say in a few words why a repository gave nothing; what the client says, where that is not known.

    Libraries wrap what the client raises, so what an error was raised from counts too.
    """
    from huggingface_hub import errors

    known = (
        (errors.GatedRepoError, "is gated: accept its licence or terms on its page, then log in with: hf auth login"),
        (errors.RepositoryNotFoundError, "was moved or removed, or asks for a login: hf auth login"),
        (errors.RevisionNotFoundError, "no longer has the pinned revision"),
        (errors.OfflineModeIsEnabled, "the hub is switched off by HF_HUB_OFFLINE"),
        (errors.LocalEntryNotFoundError, "could not be reached"),
    )
    said = next((words for kind, words in known if isinstance(error, kind) or isinstance(error.__cause__, kind)), None)
    return said or " ".join(str(error).split())[:200] or type(error).__name__


def _check(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            return
    except SafetensorError as error:
        raise OSError(f"{file.name} is no safetensors file: {error}") from error

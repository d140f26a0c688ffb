"""Downloads from the model hub, verified against the SHA-256 that the hub states, and reasons for failed ones."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path


def safetensors_of(repository: str, name: str) -> bytes:
    """Download a safetensors file of the newest commit of a repository's main branch.

    No digest of these files has been published elsewhere, so none is pinned here. The download must have the SHA-256
    that the hub states for the file in its newest commit: this detects corrupted transfers, not a file replaced at the
    source. The cache key of a score holds the SHA-256 of the weights that it used.

    Raises
    ------
    OSError
        The hub states no SHA-256, the file has another one, or it is not in the safetensors format. Errors of the hub's
        client are passed on.
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


def failure_reason(error: Exception) -> str:
    """Explain in a few words why a download from a repository failed; the client's message for unknown errors.

    Libraries wrap the client's exceptions, so the cause of an error is looked at too.
    """
    from huggingface_hub import errors

    known = (
        (errors.GatedRepoError, "is gated: accept its licence or terms on its page, then log in with: hf auth login"),
        (errors.RepositoryNotFoundError, "was moved or removed, or asks for a login: hf auth login"),
        (errors.RevisionNotFoundError, "no longer has the pinned revision"),
        (errors.OfflineModeIsEnabled, "the hub is switched off by HF_HUB_OFFLINE"),
        (errors.LocalEntryNotFoundError, "could not be reached"),
    )
    reason = next((text for kind, text in known if isinstance(error, kind) or isinstance(error.__cause__, kind)), None)
    return reason or " ".join(str(error).split())[:200] or type(error).__name__


def _check(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            return
    except SafetensorError as error:
        raise OSError(f"{file.name} is not a safetensors file: {error}") from error

"""What a manifest's comments say of parameters, for readers who see the values without the file."""

from __future__ import annotations

import re
from pathlib import Path

from immunebench.core.errors import UsageError
from immunebench.declared import schema

_TABLE = re.compile(r"^\s*\[(?P<name>[^\[\]]+)\]\s*(#.*)?$")
# A sign of a comment inside quotes begins none.
_LINE = re.compile(r"""^\s*(?P<name>[\w-]+)\s*=(?:"[^"]*"|'[^']*'|[^"'#])*#\s*(?P<note>.*\S)\s*$""")


def param_notes(manifest: Path) -> dict[str, str]:
    """Return the comment behind each parameter of ``[params]``; empty where a manifest cannot be read."""
    try:
        lines = schema.read_text(manifest).splitlines()
    except UsageError:
        return {}
    found: dict[str, str] = {}
    table = ""
    for line in lines:
        if head := _TABLE.match(line):
            table = head["name"].strip()
        elif table == "params" and (parts := _LINE.match(line)):
            found[parts["name"]] = parts["note"]
    return found

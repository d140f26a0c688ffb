"""No module imports itself by way of others: read from the sources, beside what import-linter says."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "bench" / "immunebench"


def test_no_import_leads_back() -> None:
    """Imports inside functions and for type checkers count too."""
    files = {".".join(("immunebench", *f.relative_to(PACKAGE).with_suffix("").parts)): f for f in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for name, file in files.items()}
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        if name == "immunebench":
            continue  # The public face names what lies below it; nothing below names it.
        found = set()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                # A module taken from a package needs the package's own names no more than its path.
                found |= inside & modules.keys()
                found |= {node.module} if inside - modules.keys() else set()
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = (found & modules.keys()) - {name, "immunebench"}
    assert len(graph) > 200 and "immunebench.core.errors" in graph["immunebench.api"]
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)

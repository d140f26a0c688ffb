"""What an entry's code may say, read from its syntax tree without running it.

This tells an author what the box will refuse, and a reviewer where to look. It is no protection: code that wants to
hide can; the box is what holds it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import immunebench
from immunebench.core.errors import UsageError
from immunebench.declared.schema import read_text
from immunebench.submission.findings import Finding, finding

_LIBRARIES = frozenset({"immunebench", "numpy", "torch", "scipy", "PIL", "torchvision", "einops"})
_STANDARD = frozenset(
    [
        "__future__",
        "abc",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "enum",
        "functools",
        "heapq",
        "io",
        "itertools",
        "math",
        "numbers",
        "operator",
        "re",
        "statistics",
        "string",
        "types",
        "typing",
        "warnings",
    ]
)
#: Parts of allowed libraries that load, run or fetch.
_REFUSED = frozenset(
    [
        "torch.hub",
        "torch.utils.cpp_extension",
        "torch.package",
        "torch.distributed",
        "torch.multiprocessing",
        "torch.jit",
        "torch._dynamo",
        "torch.utils.data",
        "numpy.ctypeslib",
        "numpy.f2py",
        "torchvision.datasets",
        "torchvision.io",
        "scipy.io",
    ]
)
_CALLS = frozenset(
    [
        "eval",
        "exec",
        "compile",
        "open",
        "input",
        "breakpoint",
        "__import__",
        "globals",
        "locals",
        "vars",
        "setattr",
        "delattr",
        "exit",
        "quit",
        "print",
    ]
)
_METHODS = frozenset(
    [
        "torch.load",
        "torch.save",
        "torch.hub.load",
        "torch.set_num_threads",
        "torch.use_deterministic_algorithms",
        "torch.set_default_dtype",
        "torch.set_default_device",
        "numpy.load",
        "numpy.save",
        "numpy.savez",
        "numpy.fromfile",
        "numpy.memmap",
        "numpy.loadtxt",
        "numpy.genfromtxt",
        "numpy.savetxt",
        "numpy.tofile",
    ]
)
_RANDOM = ("numpy.random.", "torch.manual_seed", "torch.seed", "torch.random.", "torch.cuda.manual_seed")
#: Draws of torch that take a generator.
_DRAWS = frozenset(
    {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "rand_like", "randn_like"}
)
_HARMLESS = frozenset({"__name__", "__doc__", "__version__", "__class_getitem__"})
_MEASURE = (
    "metrics",
    "mini",
    "execution",
    "board",
    "records",
    "store",
    "catalog",
    "plan",
    "cli",
    "submission",
    "bases",
)


def check_code(folder: Path) -> Iterator[Finding]:
    """Yield the findings of every Python file of an entry's folder."""
    for path in sorted(folder.rglob("*.py")):
        if path.is_symlink() or not path.is_file():
            continue  # Named by the check of files.
        try:
            tree = ast.parse(read_text(path))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            yield finding("syntax", path, f"does not parse: {error}", getattr(error, "lineno", None))
        except UsageError as error:
            yield finding("syntax", path, error.message)
        else:
            yield from _Reader(path, folder).read(tree)


class _Reader:
    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        #: Local names of imported modules and members, by what they stand for.
        self.names: dict[str, str] = {}

    def read(self, tree: ast.Module) -> Iterator[Finding]:
        nodes = list(ast.walk(tree))
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.names[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
                    yield from self._module(node, alias.name)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.names[alias.asname or alias.name] = f"{node.module or ''}.{alias.name}"
                yield from self._members(node)
        for node in nodes:
            if isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, ast.Attribute):
                yield from self._attribute(node)
            elif isinstance(node, ast.Name) and node.id in ("__builtins__", "__loader__", "__spec__"):
                yield self._finding("call", node, f"uses {node.id}")
            elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
                yield from self._assignment(node)
            elif isinstance(node, ast.Global | ast.Nonlocal) and isinstance(node, ast.Global):
                yield self._finding("patch", node, f"changes global names: {', '.join(node.names)}", "warning")

    def _module(self, node: ast.stmt, name: str) -> Iterator[Finding]:
        top = name.partition(".")[0]
        if top == "immunebench" and name != "immunebench":
            yield self._finding("submodule", node, f"imports {name}, which is no part of the API")
        elif top == "random":
            yield self._finding("random", node, "imports random, whose state is not the stage's")
        elif top not in _LIBRARIES | _STANDARD or any(_below(name, refused) for refused in _REFUSED):
            yield self._finding("import", node, f"imports {name}")

    def _members(self, node: ast.ImportFrom) -> Iterator[Finding]:
        if node.level:
            if node.level > 1:
                yield self._finding("import", node, "imports from above its own folder")
            return
        name = node.module or ""
        if name == "immunebench":
            for alias in node.names:
                if alias.name not in immunebench.__all__:
                    inner = "the benchmark's own" if alias.name in _MEASURE else "no name of the API"
                    yield self._finding("submodule", node, f"imports {alias.name} from immunebench: {inner}")
            return
        yield from self._module(node, name)
        for alias in node.names:
            full = f"{name}.{alias.name}"
            if alias.name == "*":
                yield self._finding("import", node, f"imports every name of {name}")
            elif full in _METHODS or any(_below(full, refused) for refused in _REFUSED):
                yield self._finding("call", node, f"imports {full}")
            elif full.startswith(_RANDOM):
                yield self._finding("random", node, f"imports {full}")

    def _call(self, node: ast.Call) -> Iterator[Finding]:
        name = self._full(node.func)
        if isinstance(node.func, ast.Name) and node.func.id in _CALLS and node.func.id not in self.names:
            severe = node.func.id not in ("print",)
            yield self._finding("call", node, f"calls {node.func.id}", "error" if severe else "warning")
        elif isinstance(node.func, ast.Name) and node.func.id == "getattr" and not _plain_getattr(node):
            yield self._finding("call", node, "calls getattr with a name that is not written out")
        elif name in _METHODS:
            yield self._finding("call", node, f"calls {name}")
        elif name == "PIL.Image.open":
            yield self._finding("call", node, f"calls {name}, which is meant for bytes in memory only", "warning")
        elif name.startswith(_RANDOM) and not (name.startswith("numpy.random.") and _from_a_seed(node, name)):
            yield self._finding("random", node, f"calls {name}")
        elif name.startswith("torch.") and name.removeprefix("torch.") in _DRAWS and not _seeded(node):
            yield self._finding("random", node, f"calls {name} without a generator of the context", "warning")

    def _attribute(self, node: ast.Attribute) -> Iterator[Finding]:
        name = node.attr
        if name.startswith("__") and name.endswith("__") and name not in _HARMLESS:
            yield self._finding("call", node, f"uses {name}, which leads into the interpreter")
        full = self._full(node)
        if full and any(_below(full, refused) for refused in _REFUSED):
            yield self._finding("call", node, f"uses {full}")

    def _assignment(self, node: ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete) -> Iterator[Finding]:
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                if isinstance(part, ast.Attribute) and (full := self._full(part)):
                    yield self._finding("patch", node, f"assigns to {full}, which others use too")

    def _full(self, node: ast.expr) -> str:
        """Return the dotted name of an expression that begins with an imported name, empty for others."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.names:
            return ""
        return ".".join([self.names[node.id], *reversed(parts)])

    def _finding(self, code: str, node: ast.stmt | ast.expr, said: str, severity: str = "error") -> Finding:
        return finding(code, self.path, said, node.lineno, "error" if severity == "error" else "warning")


def _seeded(node: ast.Call) -> bool:
    return any(word.arg == "generator" for word in node.keywords)


def _from_a_seed(node: ast.Call, name: str) -> bool:
    """Return whether a call makes a generator of NumPy from a seed."""
    made = name.rpartition(".")[2] in ("default_rng", "Generator", "PCG64", "Philox", "SeedSequence")
    return made and bool(node.args or node.keywords)


def _below(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _plain_getattr(node: ast.Call) -> bool:
    """Return whether a call of getattr names its attribute as a plain text without underscores in front."""
    if len(node.args) < 2 or not isinstance(node.args[1], ast.Constant):
        return False
    return isinstance(node.args[1].value, str) and not node.args[1].value.startswith("_")

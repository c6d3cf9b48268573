"""House rules that ruff, mypy and import-linter can't express; `make lint` runs this.

    python tools/check_repo.py [ROOT]

Prints one line per finding (``path:line: rule: what is wrong``) and exits 1 if there is any.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 60
FOLDERS = ("core", "plugins", "conformance", "tests", "tools", "examples", "benchmarks")
SKIPPED = {"__pycache__", "build", "dist"}

# Backends that core must not name, whether or not their plugin is in this repository yet.
KNOWN_BACKENDS = ("fake", "mooncake", "mori", "nixl")

# Distributions that no wheel of ours may ask for unless by an extra: which one fits depends on the machine, and torch comes
# along with some of them.
ENGINES = re.compile(r"(?:torch|nixl|mooncake|amd-mori|mori|cuda|cupy|nvidia|pycuda)(?![a-z])", re.IGNORECASE)

# Put together here, so that this file doesn't find itself.
LEFTOVER = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")


@dataclass(frozen=True, order=True)
class Finding:
    """One broken rule at one place."""

    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        """``path:line: rule: text``, which editors can jump to."""
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


def python_files(root: Path) -> Iterator[Path]:
    """Every Python file of the workspace, in a stable order."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).parts
            if not any(part in SKIPPED or part.startswith(".") for part in parts):
                yield path


def projects(root: Path) -> dict[Path, dict[str, Any]]:
    """The ``[project]`` table of each distribution, by the path of its pyproject.toml."""
    paths = [root / "core/pyproject.toml", root / "conformance/pyproject.toml", *root.glob("plugins/*/pyproject.toml")]
    return {path: tomllib.loads(path.read_text(encoding="utf-8"))["project"] for path in sorted(paths) if path.exists()}


def backend_names(tables: Iterable[dict[str, Any]]) -> set[str]:
    """The known backends, and those that the workspace's own plugins announce."""
    names = set(KNOWN_BACKENDS)
    for table in tables:
        names |= set(table.get("entry-points", {}).get("kv_core.backends", {}))
    return names


def check_versions(root: Path, tables: dict[Path, dict[str, Any]]) -> Iterator[Finding]:
    """One static version for all distributions."""
    versions = {path: table.get("version") for path, table in tables.items()}
    core = versions.get(root / "core/pyproject.toml")
    for path, version in versions.items():
        name = str(path.relative_to(root))
        if version is None:
            yield Finding(name, 1, "versions", "no static version in [project]")
        elif version != core:
            yield Finding(name, 1, "versions", f"version {version} differs from kv-core's {core}")


def check_version_attribute(root: Path) -> Iterator[Finding]:
    """``__version__`` comes from the installed metadata and stands nowhere a second time."""
    init = root / "core/src/kv_core/__init__.py"
    for path in (init, *sorted(root.glob("plugins/*/src/*/__init__.py"))):
        if not path.exists():
            continue
        name = str(path.relative_to(root))
        values = dict(_assignments(ast.parse(path.read_text(encoding="utf-8")), "__version__"))
        if path == init and not values:
            yield Finding(name, 1, "versions", 'no __version__: __version__ = importlib.metadata.version("kv-core")')
        for line, value in values.items():
            if not (isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "version"):
                yield Finding(name, line, "versions", "__version__ must come from importlib.metadata.version()")


def _assignments(tree: ast.Module, name: str) -> Iterator[tuple[int, ast.expr | None]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                yield node.lineno, node.value


def check_distribution(root: Path, path: Path, table: dict[str, Any]) -> Iterator[Finding]:
    """What every distribution has, what a test folder must not have, and engines that are not asked for by an extra."""
    name, folder = str(path.relative_to(root)), path.parent
    module = str(table.get("name", "")).replace("-", "_")
    for part in ("README.md", "tests", f"src/{module}/py.typed"):
        if not (folder / part).exists():
            yield Finding(name, 1, "distribution", f"{part} is missing beside it")
    for marker in sorted((folder / "tests").rglob("__init__.py")):
        if marker.parent.name == "tests":
            yield Finding(str(marker.relative_to(root)), 1, "distribution", "a test folder is no package: delete it")
    for requirement in table.get("dependencies", []):
        if ENGINES.match(requirement):
            text = f"{requirement!r} belongs in an extra: the plugin has to be installable, and to say what is missing, without"
            yield Finding(name, 1, "engine-by-extra", text)


def check_file(root: Path, path: Path, backends: set[str]) -> Iterator[Finding]:
    """All rules that look at one Python file."""
    name = path.relative_to(root).as_posix()
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=name)
    lines = text.count("\n")
    if lines > MAX_MODULE_LINES:
        yield Finding(name, 1, "module-length", f"{lines} lines, at most {MAX_MODULE_LINES}")
    for node in ast.walk(tree):
        for line, rule, what in check_node(node):
            yield Finding(name, line, rule, what)
    for line, comment in _comments(text):
        if LEFTOVER.search(comment):
            yield Finding(name, line, "leftover", f"finish it or write an issue: {comment.strip()}")
    if name.startswith("core/src/"):
        for line, what in check_names_no_backend(tree, backends):
            yield Finding(name, line, "backend-name", what)


def check_node(node: ast.AST) -> Iterator[tuple[int, str, str]]:
    """The rules that one syntax node can break, as (line, rule, what)."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from _check_import(node)
    elif isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time":
        yield node.lineno, "wall-clock", "time.time jumps: use time.monotonic or time.perf_counter"
    elif isinstance(node, ast.keyword) and node.arg == "daemon" and _is_true(node.value):
        yield node.value.lineno, "daemon-thread", "a thread has a stop event and is joined with a deadline"
    elif isinstance(node, ast.Assign) and _is_true(node.value):
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr == "daemon":
                yield node.lineno, "daemon-thread", "a thread has a stop event and is joined with a deadline"
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield node.lineno, "function-length", f"{node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
    elif isinstance(node, ast.ExceptHandler) and len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
        yield node.lineno, "swallowed", "handle it, or contextlib.suppress with a comment that says why"


def _check_import(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str, str]]:
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    if any(module.split(".")[0] in {"pickle", "_pickle", "cPickle", "cloudpickle", "dill"} for module in modules):
        yield node.lineno, "pickle", "no pickle: on a wire use msgspec, in a test of spawn use multiprocessing"
    if isinstance(node, ast.ImportFrom) and node.module == "time" and any(alias.name == "time" for alias in node.names):
        yield node.lineno, "wall-clock", "time.time jumps: use time.monotonic or time.perf_counter"


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING}:
            yield token.start[0], token.string


def check_names_no_backend(tree: ast.Module, backends: set[str]) -> Iterator[tuple[int, str]]:
    """A backend's name in a string of core means that core treats it specially. Docstrings may explain; code may not.

    Names match as whole words, also as ``kv-NAME`` and ``kv_NAME``; ``FAKE_BOOTSTRAP_HOST`` is not a backend's name.
    """
    word = re.compile(rf"(?<![A-Za-z0-9_-])(?:kv[-_])?({'|'.join(sorted(backends))})(?![A-Za-z0-9_])", re.IGNORECASE)
    docstrings = set(_docstrings(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            found = word.search(node.value)
            if found:
                yield node.lineno, f"core names the backend {found.group(1)!r}: ask for a capability"


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    # A string that is a statement of its own is a docstring: of a module, class or function, or of the attribute above.
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def check(root: Path) -> list[Finding]:
    """Every finding in the workspace at `root`, sorted."""
    tables = projects(root)
    findings = [*check_versions(root, tables), *check_version_attribute(root)]
    for path, table in tables.items():
        findings += check_distribution(root, path, table)
    backends = backend_names(tables.values())
    for path in python_files(root):
        findings += check_file(root, path, backends)
    return sorted(findings)


def main(argv: list[str]) -> int:
    """Check the workspace given on the command line, by default the one this file stands in."""
    root = Path(argv[0]) if argv else Path(__file__).resolve().parent.parent
    findings = check(root)
    for finding in findings:
        print(finding)
    files = sum(1 for _ in python_files(root))
    print(f"check_repo: {files} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

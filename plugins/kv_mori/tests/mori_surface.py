"""What kv-mori relies on in amd-mori, taken out of the published wheel. The wheel needs no installation to be read.

    python -m plugins.kv_mori.tests.mori_surface            compare the newest wheel with mori_surface.json
    python -m plugins.kv_mori.tests.mori_surface --write    write mori_surface.json anew, after that comparison

Three kinds of evidence, from strong to weak:

- Python sources (``mori/io``): classes, methods and parameters, and how they call the compiled module.
- C++ headers that the wheel carries for its run-time compiler (``mori/_jit-sources/include/mori/io``): members and values of
  enumerations, fields of settings and descriptors in their order, methods of a status.
- Strings of the compiled module: that a name or keyword which Python code uses occurs in it as a whole. Not whose it is.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXTRACT = HERE / "mori_surface.json"
CACHE = Path.home() / ".cache" / "kv-core-tests"
CLASSES = ("IOEngine", "IOEngineSession")
KEYWORDS = (
    "qp_per_transfer", "post_batch_size", "num_worker_threads", "poll_cq_mode", "enable_notification", "notif_per_qp",
    "enable_transfer_chunking", "chunk_bytes", "max_chunks_per_transfer", "num_nics_per_transfer", "num_streams",
    "num_events", "host", "port", "timeout_ms",
)  # fmt: skip
NATIVE = (
    "Code", "Message", "InProgress", "Succeeded", "WaitFor", "pack", "unpack", "key", "size", "set_log_level",
    "GetEngineDesc", "CreateBackend", "RegisterRemoteEngine", "DeregisterRemoteEngine", "RegisterMemory",
    "DeregisterMemory", "BatchWrite", "CreateSession", "WaitAll", "Alive",
)  # fmt: skip


class Untestable(Exception):
    """The wheel can't be had."""


def wheel(version: str | None) -> Path:
    """The wheel of this version (None: the newest), from the cache or downloaded into it."""
    known = sorted(CACHE.glob(f"amd_mori-{version}-*.whl")) if version else []
    if known:
        return known[0]
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--python-version", "3.12", "--platform", "manylinux_2_39_x86_64", "--only-binary=:all:", "--dest", str(CACHE),
        f"amd-mori=={version}" if version else "amd-mori",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode:
        raise Untestable(f"UNTESTABLE: amd-mori {version or ''} can't be downloaded: {done.stderr.strip()}")
    return max(CACHE.glob(f"amd_mori-{version or '*'}-*.whl"), key=lambda path: path.stat().st_mtime)


def extract(path: Path) -> dict[str, Any]:
    """The surface, as it is kept in ``mori_surface.json``."""
    with zipfile.ZipFile(path) as archive:
        engine = archive.read("mori/io/engine.py").decode()
        package = archive.read("mori/io/__init__.py").decode()
        header = "mori/_jit-sources/include/mori/io/"
        enums, common, backend, engines = (
            archive.read(f"{header}{name}.hpp").decode() for name in ("enum", "common", "backend", "engine")
        )
        compiled = archive.read("mori/libmori_pybinds.so")
    return {
        "wheel": path.name,
        "version": path.name.split("-")[1],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "exports": exports(package, engine),
        "methods": methods(engine),
        "native_calls": calls_of(engine),
        "enums": {name: enum_of(enums, name) for name in re.findall(r"enum class (\w+)", enums)},
        "settings": {
            name: constructor_of(text, name)
            for name, text in (("RdmaBackendConfig", backend), ("XgmiBackendConfig", backend))
        },
        "engine_config": re.findall(
            r"^\s*[\w:]+ (\w+)(?:\{.*\})?;", struct_of(engines, "IOEngineConfig"), re.MULTILINE
        ),
        "packed": {name: packed_of(common, name) for name in ("EngineDesc", "MemoryDesc")},
        "status_methods": sorted(
            set(re.findall(r"^\s+[\w:]+ (\w+)\(.*\) \{", struct_of(common, "TransferStatus"), re.MULTILINE))
        ),
        "strings": {name: f"\0{name}\0".encode() in compiled for name in (*KEYWORDS, *NATIVE)},
    }


def functions(source: str) -> dict[str, dict[str, ast.FunctionDef]]:
    """Methods of ``CLASSES`` by name."""
    return {
        node.name: {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name in CLASSES
    }


def methods(source: str) -> dict[str, dict[str, str]]:
    """The parameters of each method, as they are written."""
    return {
        name: {key: ast.unparse(item.args) for key, item in found.items()} for name, found in functions(source).items()
    }


def calls_of(source: str) -> dict[str, str]:
    """What is passed on to the compiled module, as it is written, by the module's method."""
    calls: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner in ("self._engine", "self._sess"):
                calls[f"{owner[5:]}.{node.func.attr}"] = ", ".join(map(ast.unparse, node.args))
    batch = "_batch_single_side_transfer"
    for name, found in functions(source).items():
        for item in ast.walk(found[batch]) if batch in found else ():
            if isinstance(item, ast.Call) and ast.unparse(item.func) == "func":
                calls[f"{name}.{batch}"] = ", ".join(map(ast.unparse, item.args))
    return calls


def exports(package: str, engine: str) -> list[str]:
    """Names that ``mori.io`` has."""
    names = [node.name for node in ast.parse(engine).body if isinstance(node, ast.ClassDef)]
    for node in ast.parse(package).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.name != "*"]
    return sorted(names)


def struct_of(text: str, name: str) -> str:
    """The body of a struct or class."""
    found = re.search(rf"(?:struct|class) {name}\b[^;{{]*\{{(.*?)^\}};", text, re.DOTALL | re.MULTILINE)
    assert found, f"{name} is not in the header"
    return found[1]


def enum_of(text: str, name: str) -> dict[str, int]:
    """Members with their values."""
    body = re.search(rf"enum class {name}[^{{]*\{{(.*?)\}}", text, re.DOTALL)
    assert body
    return {member: int(value) for member, value in re.findall(r"(\w+) = (\d+)", body[1])}


def constructor_of(text: str, name: str) -> list[str]:
    """Parameters of the constructor with parameters, in snake case."""
    found = re.search(rf"{name}\(([^)]*\w_[^)]*)\)", text)
    assert found
    names = re.findall(r"(\w+)_(?: =|,|$)", found[1].replace("\n", " "))
    return [re.sub(r"(?<!^)([A-Z])", r"_\1", word).lower() for word in names]


def packed_of(text: str, name: str) -> list[str]:
    """Fields in the order in which they are packed."""
    found = re.search(r"MSGPACK_DEFINE\((.*?)\)", struct_of(text, name), re.DOTALL)
    assert found
    return [word.strip() for word in found[1].replace("\n", " ").split(",")]


def main(arguments: list[str]) -> int:
    """See the module."""
    newest = extract(wheel(None))
    known = json.loads(EXTRACT.read_text()) if EXTRACT.exists() else {}
    for key, value in newest.items():
        if known.get(key) != value:
            print(f"{key}\n  known:  {known.get(key)}\n  newest: {value}")
    if "--write" in arguments:
        EXTRACT.write_text(json.dumps(newest, indent=1, sort_keys=True) + "\n")
        return 0
    return 0 if newest == known else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

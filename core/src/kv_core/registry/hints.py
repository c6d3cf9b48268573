"""What to do about an error that a plugin raised while it was loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from kv_core.registry.source import Source

_MISSING_LIBRARY = re.compile(r"([\w.+-]+\.so[\w.]*): cannot open shared object file")
_MISSING_SYMBOL_VERSION = re.compile(r"version [`'\"]?((?:GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+)")
_UNDEFINED_SYMBOL = re.compile(r"undefined symbol: ?(\S+)")
_WRONG_FILE = re.compile(r"invalid ELF header|wrong ELF class|Exec format error")
_FROM_CORE = re.compile(r"cannot import name '(\w+)' from '(kv_core[\w.]*)'")

# Names under which Debian and Ubuntu ship what engines want most often; longest prefix first where one contains another.
_LIBRARY_HOMES = (
    ("libcudart.so", "the CUDA runtime (of the version that the engine's wheel was built for)"),
    ("libcuda.so", "the NVIDIA driver (in a container: run it with the GPU passed through)"),
    ("libamdhip64.so", "the ROCm runtime"),
    ("libibverbs.so", "the package libibverbs1 (rdma-core)"),
    ("libmlx5.so", "the package ibverbs-providers (rdma-core)"),
    ("librdmacm.so", "the package librdmacm1 (rdma-core)"),
    ("libnuma.so", "the package libnuma1"),
    ("libcurl.so", "the package libcurl4"),
    ("libssl.so", "OpenSSL of that version"),
    ("libcrypto.so", "OpenSSL of that version"),
)


def hint_for(error: BaseException, source: Source) -> str:
    """One sentence: the most specific mend that the error, or one that it was raised from, allows."""
    for link in _chain(error):
        hint = _hint(link, source)
        if hint:
            return hint
    return f"Run python -c 'import {source.module}' to see the whole traceback, or reinstall {source.distribution}"


def kv_core_version() -> str:
    """Version of the installed core."""
    try:
        return version("kv-core")
    except PackageNotFoundError:
        return "(not installed)"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _hint(error: BaseException, source: Source) -> str:
    text = str(error)
    if isinstance(error, SystemExit):
        return (
            f"A library that it imports ends the process instead of raising: run python -c 'import {source.module}' "
            "to see what it prints before it exits"
        )
    if from_core := _FROM_CORE.search(text):
        return (
            f"{source.label} was written for another version of kv-core than the installed {kv_core_version()}, "
            f"which has no {from_core[1]} in {from_core[2]}: install versions that belong together"
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing_module(error.name, source)
    if library := _MISSING_LIBRARY.search(text):
        return _missing_library(library[1])
    if symbol_version := _MISSING_SYMBOL_VERSION.search(text):
        return (
            f"The engine was built for a newer system than this one, which has no {symbol_version[1]}: "
            "use a newer base image, or a build of the engine for this one"
        )
    if symbol := _UNDEFINED_SYMBOL.search(text):
        return (
            f"Two libraries that don't belong together were loaded (nobody defines {symbol[1]}): "
            "reinstall the engine in the version that matches the installed driver, CUDA or ROCm"
        )
    if _WRONG_FILE.search(text):
        return "The library is damaged, or made for another kind of machine: reinstall the engine for this one"
    return _missing_attribute(error, source)


def _missing_attribute(error: BaseException, source: Source) -> str:
    attributes = source.value.partition(":")[2].strip().split(".")
    if isinstance(error, AttributeError) and any(name and repr(name) in str(error) for name in attributes):
        return (
            f"The entry point {source.name!r} of {source.distribution} points to {source.value}, which doesn't exist: "
            "correct the entry point and reinstall the distribution"
        )
    return ""


def _missing_library(name: str) -> str:
    home = next((f": install {home}" for prefix, home in _LIBRARY_HOMES if name.startswith(prefix)), "")
    return (
        f"The dynamic linker can't find {name}{home or ': install the system package that has it'}, "
        "or add its folder to LD_LIBRARY_PATH before Python starts"
    )


def _missing_module(module: str, source: Source) -> str:
    top = module.partition(".")[0]
    if top == source.module.partition(".")[0]:
        return f"Files of {source.distribution} are missing from this environment: reinstall {source.distribution}"
    declared = [line for line in _requirements(source) if _is_for(line, top)]
    if declared:
        return (
            f"The Python module {module} is not installed, though {source.distribution} requires {declared[0]!r}: "
            f"pip install --upgrade {source.distribution}"
        )
    return f"Install the Python package that has the module {module} into this environment: the plugin needs it"


def _requirements(source: Source) -> list[str]:
    try:
        return requires(source.distribution) or []
    except PackageNotFoundError:
        return []


def _is_for(requirement: str, module: str) -> bool:
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "_", name).lower().startswith(module.lower())

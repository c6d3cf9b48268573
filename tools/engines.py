"""Install engines in the versions that are tested (groups ``engine-*`` of the root pyproject.toml); `make` runs this.

    python tools/engines.py nixl mooncake

Installs the system libraries that are missing where it may (root, and apt-get), then the wheels, then loads the backend
the way a server does. Whatever can't be done ends with exit status 1 and says what to do about it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Engine:
    """How an engine is installed: pip's arguments beside the group, and the system libraries with Debian's packages."""

    arguments: tuple[str, ...]
    libraries: Mapping[str, str] = field(default_factory=dict)


ENGINES = {
    # Only the metadata of its wheels asks for torch, the code does without: hence no dependencies. NumPy comes with core.
    "nixl": Engine(("--no-deps",)),
    # By the plugin's extra, so that pip refuses a pinned version that the extra does not allow.
    "mooncake": Engine(
        ("--editable", "plugins/kv_mooncake[cpu]"),
        {"libibverbs.so.1": "libibverbs1", "libnuma.so.1": "libnuma1", "libcurl.so.4": "libcurl4"},
    ),
}


class CannotInstall(Exception):
    """What could not be done, and what to do about it."""


def missing_packages(libraries: Mapping[str, str], load: Callable[[str], object] = ctypes.CDLL) -> list[str]:
    """The packages of those libraries that the dynamic linker does not find."""
    missing = []
    for library, package in libraries.items():
        try:
            load(library)
        except OSError:
            missing.append(package)
    return missing


def apt_commands(packages: Sequence[str]) -> list[list[str]]:
    """What installs these packages on Debian and Ubuntu."""
    return [
        ["apt-get", "update", "--quiet=2"],
        ["apt-get", "install", "--quiet=2", "--yes", "--no-install-recommends", *packages],
    ]


def install_libraries(name: str, libraries: Mapping[str, str], *, may_install: bool) -> None:
    """Install what is missing, or say with which commands somebody else can."""
    missing = missing_packages(libraries)
    if not missing:
        return
    commands = apt_commands(missing)
    by_hand = " && ".join("sudo " + " ".join(command) for command in commands)
    if not may_install:
        raise CannotInstall(
            f"{name} needs system libraries that are not here ({', '.join(missing)}), and only root can install them. Run\n"
            f"    {by_hand}\nand make again. Elsewhere than on Debian and Ubuntu the packages have other names."
        )
    for command in commands:
        print("+", " ".join(command), flush=True)
        done = subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False)
        if done.returncode != 0:
            raise CannotInstall(f"{name} needs {', '.join(missing)}: {command[0]} failed (above). Try\n    {by_hand}")
    if still := missing_packages(libraries):
        raise CannotInstall(f"{', '.join(still)} is installed, but the dynamic linker does not find it: run ldconfig")


def install_wheels(name: str, arguments: Sequence[str]) -> None:
    """Install the engine's group with this interpreter's pip."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run([*pip, *arguments, "--group", f"pyproject.toml:engine-{name}"], cwd=ROOT, check=False)
    if done.returncode != 0:
        here = (
            f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {platform.libc_ver()[1]}"
        )
        raise CannotInstall(
            f"pip can't install {name} in the tested version here ({here}); its own words stand above. If there is no wheel "
            f"for this Python or platform, use another one (make clean; make PYTHON=python3.11 ...), or do without:\n"
            f'    make ... ENGINES="{" ".join(other for other in ENGINES if other != name)}"\n'
            f"Then the tests that need {name} are skipped, and say so."
        )


def check_loads(name: str) -> None:
    """Load the backend in a process of its own: an engine that is installed may still not work here."""
    done = subprocess.run(
        [sys.executable, "-c", f"import kv_core; print(kv_core.load_backend({name!r}).info.description)"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise CannotInstall(f"{name} is installed but can't be loaded:\n{done.stderr.strip()}")
    print(f"{name}: {done.stdout.strip()}")


def main(names: Sequence[str]) -> int:
    """Install each engine; 1 if one can't be."""
    may_install = os.geteuid() == 0 and shutil.which("apt-get") is not None
    for name in names:
        if name not in ENGINES:
            print(f"no engine {name!r} to install; there are: {', '.join(ENGINES)}", file=sys.stderr)
            return 1
        try:
            install_libraries(name, ENGINES[name].libraries, may_install=may_install)
            install_wheels(name, ENGINES[name].arguments)
            check_loads(name)
        except CannotInstall as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

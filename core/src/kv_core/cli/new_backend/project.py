"""The files of a new backend's project, from the templates beside this module."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from string import Template

from kv_core import KV_CORE_API, __version__
from kv_core.cli.new_backend.names import Names, Refused, bounds

FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "conformance.yml": ".github/workflows/conformance.yml",
    "init.py": "src/$module/__init__.py",
    "transport.py": "src/$module/transport.py",
    "conformance.py": "src/$module/conformance.py",
    "py.typed": "src/$module/py.typed",
}
"""Template (without its suffix) and the file's place in the project, in the order in which they are written."""
SUFFIX = ".tmpl"
SHOWN = 3
"""So many entries of a folder that is not empty are named."""


def render(names: Names) -> dict[str, str]:
    """Each file's text by its path in the project. Nothing is written."""
    values = {
        "name": names.name,
        "distribution": names.distribution,
        "module": names.module,
        "prefix": names.prefix,
        "bounds": bounds(__version__),
        "api_version": repr(KV_CORE_API),
    }
    templates = files(__package__) / "templates"
    rendered = {}
    for template, target in FILES.items():
        text = (templates / f"{template}{SUFFIX}").read_text(encoding="utf-8")
        rendered[Template(target).substitute(values)] = Template(text).substitute(values)
    return rendered


def write(names: Names, folder: Path) -> Iterator[Path]:
    """Write the project and yield each file's path once it is there.

    Raises ``Refused``, before anything is written, if ``folder`` is there and is not an empty folder; and if the system
    does not let it write.
    """
    rendered = render(names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise Refused(f"{folder} can't be the project's folder: {error.strerror or error}") from error
    if there:
        shown = ", ".join(there[:SHOWN]) + (", ..." if len(there) > SHOWN else "")
        raise Refused(f"{folder} is not empty (it has {shown}): name an empty folder, or one that is not there yet")
    for target, text in rendered.items():
        path = folder / target
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise Refused(f"{path} can't be written: {error.strerror or error}") from error
        yield path

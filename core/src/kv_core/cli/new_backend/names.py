"""What everything in a new backend's project is called, worked out from the backend's name and the running core."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

ALLOWED = (
    "a backend's name has lower-case letters and digits, begins with a letter, may have single '-' and '_' between "
    "them, and is no keyword of Python (such as: rdma, my-fabric, shm_2)"
)
TAKEN = ("core", "conformance")
"""Names whose distribution is one of kv-core's own."""
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_RELEASE = re.compile(r"(\d+)\.(\d+)(?:\.\d+)*")


class Refused(ValueError):
    """The project can't be written as asked; the message says what to change."""


@dataclass(frozen=True)
class Names:
    """The names that the templates use. ``name``: the backend's, which is also its entry point's."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or keyword.iskeyword(self.name):
            raise Refused(f"{self.name!r} can't be the name: {ALLOWED}")
        if self.name in TAKEN:
            raise Refused(f"{self.name!r} can't be the name: kv-{self.name} is a distribution of kv-core's own")

    @property
    def distribution(self) -> str:
        """What ``pip install`` calls it."""
        return f"kv-{self.name}"

    @property
    def module(self) -> str:
        """What ``import`` calls it."""
        return f"kv_{self.name.replace('-', '_')}"

    @property
    def prefix(self) -> str:
        """What its classes begin with: ``my-fabric`` gives ``MyFabric``."""
        return "".join(part.capitalize() for part in re.split("[-_]", self.name))


def bounds(version: str) -> str:
    """The versions of core that a plugin written with this one asks for: from its minor version to before the next.

    A version before a release (``0.2.0rc1``) is its own lower bound, because ``>=0.2`` would leave it out.
    """
    found = _RELEASE.match(version)
    if found is None:
        raise Refused(f"the version of the installed kv-core is {version!r}, must begin with two numbers: reinstall it")
    major, minor = int(found[1]), int(found[2])
    lowest = f"{major}.{minor}" if found[0] == version else version.partition("+")[0]
    return f">={lowest},<{major}.{minor + 1}"

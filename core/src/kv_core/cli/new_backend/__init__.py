"""``kv-core new-backend``: writes the project of a new backend, which installs and loads, and says what is left to write.

What it writes stands in ``templates``, one file each; ``names`` knows what everything is called there, ``project`` which
template becomes which file, ``command`` how it is told on the terminal.
"""

from __future__ import annotations

from kv_core.cli.new_backend.command import run
from kv_core.cli.new_backend.names import Names, Refused
from kv_core.cli.new_backend.project import render, write

__all__ = ["Names", "Refused", "render", "run", "write"]

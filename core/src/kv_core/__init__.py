"""kv-core: one protocol, many transports for moving KV-cache pages."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("kv-core")

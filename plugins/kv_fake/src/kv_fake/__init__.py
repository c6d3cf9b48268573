"""The embedded backend of kv-core: a software NIC over TCP."""

from __future__ import annotations

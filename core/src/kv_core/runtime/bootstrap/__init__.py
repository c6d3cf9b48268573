"""How prefill and decode instances find each other: the bootstrap server over HTTP, and its clients."""

from __future__ import annotations

from kv_core.runtime.bootstrap.addresses import format_address, parse_address
from kv_core.runtime.bootstrap.client import BootstrapClient
from kv_core.runtime.bootstrap.errors import BootstrapConnectionError, ConnectionTrouble
from kv_core.runtime.bootstrap.routes import HealthReport, RankAddress, RankHealth, RankRegistration, RouteInfo
from kv_core.runtime.bootstrap.server import BootstrapServer
from kv_core.runtime.bootstrap.service import HttpService

__all__ = [
    "BootstrapClient",
    "BootstrapConnectionError",
    "BootstrapServer",
    "ConnectionTrouble",
    "HealthReport",
    "HttpService",
    "RankAddress",
    "RankHealth",
    "RankRegistration",
    "RouteInfo",
    "format_address",
    "parse_address",
]

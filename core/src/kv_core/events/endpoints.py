"""ZeroMQ endpoints: the port of a rank, bind or connect, what to tell others. Pure."""

from __future__ import annotations

from typing import overload

from kv_core.contract.failures import InvalidConfig

MAX_PORT = 65_535
WILDCARDS = ("*", "0.0.0.0", "[::]", "::")  # noqa: S104 - recognised here, not bound to
_HOW = "expected tcp://HOST:PORT, tcp://*:PORT, ipc://PATH or inproc://NAME"


def split_tcp(endpoint: str) -> tuple[str, int]:
    """Host and port of ``tcp://host:port``; the host keeps its brackets, port ``*`` is 0. Raises ``InvalidConfig``."""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not colon or not host:
        raise InvalidConfig(f"endpoint {endpoint!r}: {_HOW}")
    if port == "*":
        return host, 0
    if not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
        raise InvalidConfig(f"endpoint {endpoint!r}: the port has to be a number from 0 to {MAX_PORT}")
    return host, int(port)


@overload
def offset_endpoint_port(endpoint: str, data_parallel_rank: int) -> str: ...
@overload
def offset_endpoint_port(endpoint: None, data_parallel_rank: int) -> None: ...


def offset_endpoint_port(endpoint: str | None, data_parallel_rank: int) -> str | None:
    """The endpoint of a data-parallel rank: a TCP port plus the rank, ``inproc://x`` with ``_dp{rank}``, ``ipc`` likewise.

    Rank 0 and None stay as they are, and so does port 0, which the system fills in. Raises ``InvalidConfig`` for a port past
    65535 (elsewhere that rank is silently left out, llm-d-router #1242) and for an endpoint that is none.
    """
    if not endpoint or data_parallel_rank == 0:
        return endpoint
    if endpoint.startswith(("inproc://", "ipc://")):
        return f"{endpoint}_dp{data_parallel_rank}"
    host, port = split_tcp(endpoint)
    if port == 0:
        return endpoint
    if port + data_parallel_rank > MAX_PORT:
        raise InvalidConfig(
            f"endpoint {endpoint!r}: port {port} + rank {data_parallel_rank} is past {MAX_PORT}; choose a lower base port"
        )
    return f"tcp://{host}:{port + data_parallel_rank}"


def binds(endpoint: str, bind: bool | None = None) -> bool:
    """Whether to bind (others connect) or to connect. `bind` decides where it is given, else SGLang's rule.

    That rule: wildcards, ``ipc`` and ``inproc`` are bound, any other host is connected to. Port 0 can only be bound.
    """
    if bind is not None:
        return bind
    if endpoint.startswith(("ipc://", "inproc://")):
        return True
    host, port = split_tcp(endpoint)
    return host in WILDCARDS or port == 0


def reachable(endpoint: str, host: str) -> str:
    """A bound endpoint as another process has to write it: a wildcard host becomes `host`."""
    if not endpoint.startswith("tcp://"):
        return endpoint
    own, port = split_tcp(endpoint)
    return f"tcp://{host if own in WILDCARDS else own}:{port}"

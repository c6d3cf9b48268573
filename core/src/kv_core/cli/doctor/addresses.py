"""Addresses and ports, as they are going to be configured."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from kv_core.cli.doctor.facts.network import Bound, Name
from kv_core.contract.doctor import ok, problem, warning
from kv_core.contract.records import CheckStatus, DoctorFinding

GOOD = ok("address.good", "Control sockets listen on {host}, and peers are told {advertised} ({numeric})")
UNRESOLVED = problem(
    "address.unresolved",
    "{what} {host!r} does not resolve on this machine: {error}",
    "Use a numeric address, or a name that the name server (or /etc/hosts) knows",
)
UNBINDABLE = problem(
    "address.unbindable",
    "Nothing can listen on {host!r}: {error}",
    "TransferConfig.host must be an address of this machine, of a family that it has, or 0.0.0.0 or :: for all",
)
WILDCARD = problem(
    "address.wildcard",
    "Peers would be told {host}, which means every interface and can't be connected to",
    "Set TransferConfig.advertised_host (--advertised-host) to what peers can reach; host may stay",
)
LOOPBACK = problem(
    "address.loopback",
    "Peers are told {host} ({numeric}), which leads each of them to itself, and {peer} is another machine",
    "Set TransferConfig.advertised_host (--advertised-host) to an address of this machine that {peer} can reach; towards it, this "
    "machine uses {own}",
)
ELSEWHERE = warning(
    "address.elsewhere",
    "Peers are told {host}, which is {numeric} and no address of this machine",
    "That is right behind a translating router; else correct TransferConfig.advertised_host, or the name server",
)
PORT_FREE = ok("port.free", "{what} {port} is free on {host}")
PORT_TAKEN = problem(
    "port.taken",
    "{what} {port} on {host} is taken by {holder}",
    "Stop that process, or choose another port (0 takes a free one)",
)
PORT_SERVED = ok("port.served", "{what} {port} on {host}: a bootstrap server of kv-core serves there ({holder})")
PORT_REFUSED = problem(
    "port.refused",
    "{what} {port} on {host} can't be bound: {error}",
    "Choose another one; below 1024 only root may, as a rule",
)


@dataclass(frozen=True)
class Port:
    """A port that is going to be used. ``asked``: somebody said so; ``served``: a bootstrap server of kv-core answers there."""

    what: str
    bound: Bound
    asked: bool
    served: bool = False


@dataclass(frozen=True)
class Addresses:
    """``advertised`` is what peers are told, ``bound`` what listening on ``host`` came to. ``local``, ``loopback``: whether the
    first of the advertised addresses is one of this machine's, and one that never leaves it. ``elsewhere``: the peer, if it is
    another machine; ``own``: this machine's address towards it.
    """

    host: str
    advertised: Name
    bound: Bound
    wildcard: bool
    local: bool
    loopback: bool
    elsewhere: str
    own: str
    ports: tuple[Port, ...]


def addresses(found: Addresses) -> Iterator[DoctorFinding]:
    """Host, advertised host, then ports."""
    bad = list(_hosts(found))
    yield from bad
    if not any(finding.status is CheckStatus.PROBLEM for finding in bad):
        numeric = ", ".join(found.advertised.addresses)
        yield GOOD.found(host=found.host, advertised=found.advertised.host, numeric=numeric)
    for port in found.ports:
        yield _port(port)


def _hosts(found: Addresses) -> Iterator[DoctorFinding]:
    told = found.advertised
    same = told.host == found.host
    if found.bound.code and not (same and told.problem):
        yield UNBINDABLE.found(host=found.host, error=found.bound.text)
    if told.problem:
        yield UNRESOLVED.found(what="host" if same else "advertised_host", host=told.host, error=told.problem)
    elif found.wildcard:
        yield WILDCARD.found(host=told.host)
    elif found.loopback:
        if found.elsewhere:
            yield LOOPBACK.found(
                host=told.host, numeric=told.addresses[0], peer=found.elsewhere, own=found.own or "no address at all"
            )
    elif not found.local:
        yield ELSEWHERE.found(host=told.host, numeric=told.addresses[0])


def _port(port: Port) -> DoctorFinding:
    bound = port.bound
    told = {"what": port.what, "port": bound.port, "host": bound.host}
    if not bound.code:
        return PORT_FREE.found(**told)
    holder = bound.holder or "another process"
    if bound.code != errno.EADDRINUSE:
        kind, more = PORT_REFUSED, {"error": bound.text}
    elif port.served:
        kind, more = PORT_SERVED, {"holder": holder}
    else:
        kind, more = PORT_TAKEN, {"holder": holder}
    if not port.asked and kind.status is CheckStatus.PROBLEM:
        kind = kind.at(CheckStatus.WARNING)  # nobody said that it is going to be used
    return kind.found(**told, **more)

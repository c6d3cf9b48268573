"""Addresses and ports as they are going to be configured, tried."""

from __future__ import annotations

import errno

from kv_core.cli.doctor.addresses import Addresses, Port
from kv_core.cli.doctor.facts.network import is_local, is_loopback, own_address_towards, resolve, try_bind
from kv_core.cli.doctor.settings import DEFAULT_BOOTSTRAP_PORT, DoctorSettings
from kv_core.contract.config import TransferConfig
from kv_core.contract.failures import BootstrapError
from kv_core.runtime.bootstrap import BootstrapClient, format_address, parse_address
from kv_core.runtime.bootstrap.addresses import is_wildcard

ANSWER_S = 2.0


def look_at_addresses(settings: DoctorSettings) -> Addresses:
    """Resolve and bind. A host that nobody said is the default one; with a peer elsewhere, this machine's address towards it."""
    elsewhere, own = _peer(settings)
    host = settings.host or (own if elsewhere and own else TransferConfig().host)
    told = settings.advertised_host or host
    name = resolve(told)
    first = name.addresses[0] if name.addresses else ""
    return Addresses(
        host=host,
        advertised=name,
        bound=try_bind(host, 0),
        wildcard=is_wildcard(told.removeprefix("[").removesuffix("]")),
        local=bool(first) and is_local(first),
        loopback=is_loopback(first),
        elsewhere=elsewhere,
        own=own,
        ports=_ports(settings, host),
    )


def _peer(settings: DoctorSettings) -> tuple[str, str]:
    """The peer's host if it is another machine, and this machine's address towards it."""
    if settings.peer is None:
        return "", ""
    host, port = parse_address(settings.peer)
    found = resolve(host).addresses
    if not found or any(is_local(each) for each in found):
        return "", ""
    return host, own_address_towards(host, port)


def _ports(settings: DoctorSettings, host: str) -> tuple[Port, ...]:
    ports = [_port("The bootstrap port", host, settings.bootstrap_port, DEFAULT_BOOTSTRAP_PORT)]
    if settings.control_port:
        ports.append(_port("The control port", host, settings.control_port, settings.control_port))
    return tuple(ports)


def _port(what: str, host: str, asked: int | None, default: int) -> Port:
    number = default if asked is None else asked
    bound = try_bind(host, number)
    served = False
    if bound.code == errno.EADDRINUSE:
        try:
            BootstrapClient(format_address(host, number), ANSWER_S).health()
        except BootstrapError:
            served = False
        else:
            served = True
    return Port(what, bound, asked is not None, served)

"""``CommonKVManager``: one rank's transport, sockets, threads and rooms, for every backend."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from kv_core.contract.config import FAKE_BOOTSTRAP_HOST, TransferConfig
from kv_core.contract.enums import Role
from kv_core.contract.failures import InvalidConfig, KVCoreError, ManagerClosed
from kv_core.contract.interfaces import BaseKVManager, BaseKVReceiver, BaseKVSender
from kv_core.contract.memory import KVArgs
from kv_core.contract.moments import timeline
from kv_core.contract.observers import Observers
from kv_core.contract.records import BackendRecord
from kv_core.contract.traceparent import clean_traceparent
from kv_core.layout import Move
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.nodes import ProbeResult
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.rooms import Room
from kv_core.runtime.bootstrap.addresses import format_address, parse_address
from kv_core.runtime.handles import CommonKVReceiver, CommonKVSender, HandleChecks
from kv_core.runtime.null import NullReceiver, NullSender
from kv_core.runtime.parts import Parts, assemble
from kv_core.runtime.rules import Pair

FLUSH_S = 1.0
"""How long a closing manager gives its last messages to be acknowledged."""
JOIN_S = 5.0


class CommonKVManager(BaseKVManager):
    """The shared manager. A backend's own manager may derive from it; ``create`` builds either.

    Subclasses may extend ``_on_heartbeat_success`` and ``_handle_node_failure``.
    """

    sender_class: type[CommonKVSender] = CommonKVSender
    receiver_class: type[CommonKVReceiver] = CommonKVReceiver

    def __init__(self, record: BackendRecord, role: Role, args: KVArgs, config: TransferConfig, parts: Parts) -> None:
        self.record = record
        self.role = role
        self.kv_args = args
        self.config = config
        self._parts = parts
        self._runner = parts.runner
        self._machine = parts.machine
        self._checks = HandleChecks(args, config.max_indices)
        self._logger = parts.logger
        self._closing = threading.Lock()
        self._closed = False
        self._registered: str | None = None
        if record.sender is not None and issubclass(record.sender, CommonKVSender):
            self.sender_class = record.sender
        if record.receiver is not None and issubclass(record.receiver, CommonKVReceiver):
            self.receiver_class = record.receiver

    @classmethod
    def create(
        cls, record: BackendRecord, role: Role, args: KVArgs, config: TransferConfig, observers: Observers
    ) -> CommonKVManager:
        """Register the memory, bind the sockets, start the threads. Undoes all of it if a step fails."""
        parts = assemble(record, role, args, config, observers)
        try:
            manager = cls(record, role, args, config, parts)
            parts.start(manager._on_probe)
            if role is Role.PREFILL and config.bootstrap_addr is not None:
                manager._register(format_address(*parse_address(config.bootstrap_addr)))
        except BaseException:
            parts.stop(JOIN_S, quiescent=True)
            raise
        return manager

    @property
    def endpoint(self) -> str:
        """The control socket's address, as peers are told."""
        return self._machine.me.endpoint

    @property
    def instance_id(self) -> str:
        """The manager's id, different for each opening."""
        return self._machine.me.instance_id

    # -- rooms -----------------------------------------------------------------------------------------------------

    def create_sender(
        self, bootstrap_addr: str, bootstrap_room: int, *, traceparent: str | None = None
    ) -> BaseKVSender:
        """See ``BaseKVManager.create_sender``. Raises ``ManagerClosed``; for a decode manager ``KVCoreError``."""
        machine = self._machine
        if not isinstance(machine, PrefillMachine):
            raise KVCoreError("create_sender() is for prefill managers; this one is Role.DECODE: use create_receiver()")
        addr, problem = self._address(bootstrap_addr)
        if addr is None:
            return NullSender(bootstrap_room, self._parts.rules.coverage)
        room = self._open(machine, bootstrap_room, addr, problem, traceparent)
        if self._registered is None and not problem:
            self._register(addr)
        return self.sender_class(self._runner, room, self._checks)

    def create_receiver(
        self, bootstrap_addr: str, bootstrap_room: int, *, traceparent: str | None = None
    ) -> BaseKVReceiver:
        """See ``BaseKVManager.create_receiver``. Raises ``ManagerClosed``; for a prefill manager ``KVCoreError``."""
        machine = self._machine
        if not isinstance(machine, DecodeMachine):
            raise KVCoreError("create_receiver() is for decode managers; this one is Role.PREFILL: use create_sender()")
        addr, problem = self._address(bootstrap_addr)
        if addr is None:
            return NullReceiver(bootstrap_room)
        room = self._open(machine, bootstrap_room, addr, problem, traceparent)
        return self.receiver_class(self._runner, room, self._checks)

    def _address(self, text: str) -> tuple[str | None, str]:
        """(canonical address, problem); no address for warm-up rooms."""
        if self._closed:
            raise ManagerClosed(f"this {self.role.value} manager is closed: create a new one")
        try:
            host, port = parse_address(text)
        except InvalidConfig as error:
            return "", str(error)
        return (None if host == FAKE_BOOTSTRAP_HOST else format_address(host, port)), ""

    def _open(
        self, machine: PrefillMachine | DecodeMachine, number: int, addr: str, problem: str, traceparent: str | None
    ) -> Room:
        opening = machine.open
        if traceparent is not None:
            opening = partial(machine.open, traceparent=self._own_traceparent(traceparent))
        room = self._runner.ask(opening, number, addr)
        if problem:
            self._runner.call(machine.invalid, room, problem)
        return room

    def _own_traceparent(self, told: str) -> str | None:
        """What the engine named; a wrong one is none: it is counted, and the first is logged."""
        cleaned = clean_traceparent(told)
        if cleaned is None and self._runner.read(self._machine.count_bad_traceparent) == 1:
            text = (
                "traceparent %.80r is not one of W3C Trace Context: the room goes on without; others are only counted"
            )
            self._logger.warning(text, told)
        return cleaned

    def _register(self, addr: str) -> None:
        self._registered = addr
        self._parts.http.register(addr, self._parts.registration, self._on_registered)

    def _on_registered(self, addr: str, error: Exception | None) -> None:
        if error is None:
            self._logger.info("registered with the bootstrap server at %s", addr)
        else:
            self._logger.warning("not registered with the bootstrap server at %s: %s", addr, error)
        if isinstance(self._machine, PrefillMachine):
            self._runner.call(self._machine.on_registered, "" if error is None else str(error))

    # -- liveness of prefill instances -----------------------------------------------------------------------------

    def _on_probe(self, addr: str, result: ProbeResult) -> None:
        if result.instances is None:
            self._handle_node_failure(addr, result)
        else:
            self._on_heartbeat_success(addr, result)

    def _on_heartbeat_success(self, addr: str, result: ProbeResult) -> None:
        """A prefill instance's server answered a probe. Called on the HTTP thread; extend it, and call this one."""
        if isinstance(self._machine, DecodeMachine):
            self._runner.call(self._machine.on_probe, addr, result)

    def _handle_node_failure(self, addr: str, result: ProbeResult) -> None:
        """A probe failed; the liveness machine decides what follows. Called on the HTTP thread."""
        if isinstance(self._machine, DecodeMachine):
            self._runner.call(self._machine.on_probe, addr, result)

    # -- looking in ------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """See ``BaseKVManager.snapshot``."""
        rooms = self._runner.read(self._machine.snapshot)
        parts = self._parts
        return rooms | {
            "transfers": parts.transfers.snapshot(),
            "control": parts.control.snapshot(),
            "fabrics": parts.transfers.fabrics(),
        }

    def flight_record(self, room: int | None = None, *, limit: int = 1_000) -> list[dict[str, Any]]:
        """What has happened to each live room, then to the rooms that ended last; ``room``: to those of this number.

        JSON-ready: ``room``, ``life``, ``phase``, ``released`` and ``history``, moments with ``ms`` since the first of them
        (``contract.moments`` names them), and ``age_s`` of that. At most ``limit`` of the live rooms, and ``limit`` each of
        those that failed and that succeeded, of which 64 are kept. Any thread; empty if ``flight_recorder`` is 0.
        """
        machine, now = self._machine, monotonic()
        entries = self._runner.read(lambda: machine.flight.entries(machine.live.values(), room, limit))
        return [
            {
                "room": entry.number, "life": entry.life, "phase": entry.phase, "released": entry.released,
                "age_s": round(now - entry.moments[0][0], 6), "history": timeline(entry.moments, entry.moments[0][0]),
            }
            for entry in entries
        ]  # fmt: skip

    def explain(self, peer: str = "") -> tuple[Move, ...]:
        """What moves between this rank and the peers that it has shaken hands with: who sends which layers and heads of which
        pool to whom, with bytes and descriptors of a page (``kv-core plan`` prints the same of shapes).

        ``peer``: only the one with this endpoint, or with an instance id that begins so. Raises ``ValueError`` if there is
        none. Any thread; takes milliseconds for each peer.
        """
        known = self._runner.read(lambda: [each for each in self._machine.peers.values() if each.layout is not None])
        chosen = [each for each in known if not peer or each.endpoint == peer or each.name.startswith(peer)]
        if peer and not chosen:
            raise ValueError(
                f"no peer {peer!r} has shaken hands; there are {[f'{one.name} at {one.endpoint}' for one in known]}"
            )
        return tuple(move for each in chosen if isinstance(each.layout, Pair) for move in each.layout.explain())

    def health(self) -> dict[str, Any]:
        """See ``BaseKVManager.health``."""
        return self._parts.health()

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See ``BaseKVManager.close``. Waits up to ``close_timeout_s`` for outstanding writes, and says so if they
        did not end: then the memory may still be written, or read, by the peers that the log names.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._runner.call(self._machine.close)
            quiescent = self._parts.drain(monotonic() + self.config.close_timeout_s)
            if not quiescent:
                left = self._runner.read(self._machine.snapshot)["quarantined"]
                self._logger.warning("closed while these pages may still be in use: %s", left[:16])
            self._parts.stop(JOIN_S, quiescent=quiescent)


def create_manager(
    record: BackendRecord, role: Role, args: KVArgs, config: TransferConfig, observers: Observers
) -> BaseKVManager:
    """The manager of one rank on a loaded backend: the backend's own class if it brings one, else the common one."""
    own: type[BaseKVManager] = record.manager or CommonKVManager
    if issubclass(own, CommonKVManager):
        return own.create(record, role, args, config, observers)
    build: Callable[..., BaseKVManager] = own
    return build(record, role, args, config, observers)

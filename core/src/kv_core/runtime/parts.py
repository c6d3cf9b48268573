"""Builds one manager's parts and knows the order in which they start and stop."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from time import monotonic
from typing import Any

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Capability, Direction, MemoryKind, Role
from kv_core.contract.failures import NotSupported
from kv_core.contract.memory import KVArgs
from kv_core.contract.observers import Observers
from kv_core.contract.records import BackendRecord
from kv_core.contract.transport import Transport, TransportContext
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.handshake import fields_of
from kv_core.protocol.identity import Identity
from kv_core.protocol.messages import PROTOCOL_VERSION, Codec, Introduction
from kv_core.protocol.nodes import ProbeResult
from kv_core.protocol.prefill import PrefillMachine
from kv_core.runtime.bootstrap.addresses import parse_address
from kv_core.runtime.bootstrap.routes import RankRegistration
from kv_core.runtime.bootstrap.service import HttpService
from kv_core.runtime.control import ControlChannel
from kv_core.runtime.control_loop import ControlLoop
from kv_core.runtime.fabric_rule import FabricRule
from kv_core.runtime.flight_log import FlightLog
from kv_core.runtime.mapped import check_mapped
from kv_core.runtime.observing import ObserverThread
from kv_core.runtime.process_proof import describe_process
from kv_core.runtime.rules import Rules
from kv_core.runtime.runner import Runner
from kv_core.runtime.sink import MachineSink
from kv_core.runtime.switch_interval import SwitchInterval
from kv_core.runtime.transfer import TransferEngine
from kv_core.runtime.web import BootstrapWeb

DRAIN_POLL_S = 0.005
FLUSH_S = 0.5
"""How long a closing manager gives its last messages to be acknowledged."""
MOVING = {
    Direction.WRITE: ("writing to a peer (push)", Capability.WRITE),
    Direction.READ: ("reading from a peer (pull)", Capability.READ),
}
NEEDED_FOR = {MemoryKind.CUDA: Capability.CUDA, MemoryKind.ROCM: Capability.ROCM}


@dataclass
class Parts:
    """Everything that a manager starts and stops."""

    logger: logging.Logger
    rules: Rules
    machine: PrefillMachine | DecodeMachine
    runner: Runner
    channel: ControlChannel
    control: ControlLoop
    transfers: TransferEngine
    http: HttpService
    observers: ObserverThread
    switch_interval: SwitchInterval
    registration: Callable[[], RankRegistration]
    probe_handler: list[Callable[[str, ProbeResult], None]]

    def start(self, on_probe: Callable[[str, ProbeResult], None]) -> None:
        """Start every thread."""
        self.probe_handler.append(on_probe)
        self.switch_interval.acquire()
        self.observers.start()
        self.transfers.start()
        self.http.start()
        self.control.start()

    def drain(self, deadline: float) -> bool:
        """Wait until no write of ours or into our pages is outstanding; False if the deadline came first."""
        pause = threading.Event()
        while monotonic() < deadline:
            live = self.runner.read(lambda: len(self.machine.live))
            if not live:
                return True
            pause.wait(DRAIN_POLL_S)
        return not self.runner.read(lambda: len(self.machine.live))

    def stop(self, join_s: float, *, quiescent: bool) -> None:
        """Stop everything, whatever has been started. The transport goes before the word that nothing can be written."""
        self._flush(monotonic() + FLUSH_S)
        self.http.close()
        quiescent = self.transfers.close(join_s if quiescent else 0.0) and quiescent
        self.runner.call(lambda _now: self.machine.farewell(quiescent))
        clean = self.control.close(join_s)  # closes the channel: only its thread may
        clean = self.observers.close(join_s) and clean
        self.switch_interval.release()
        if not clean:
            self.logger.error("a thread did not end within %s s: %s", join_s, self.health())

    def _flush(self, deadline: float) -> None:
        pause = threading.Event()
        while monotonic() < deadline and self.runner.read(self._unacknowledged):
            pause.wait(DRAIN_POLL_S)

    def _unacknowledged(self) -> int:
        return sum(peer.link.unacknowledged for peer in self.machine.peers.values())

    def health(self) -> dict[str, Any]:
        """Each thread: alive, seconds since its last progress, exceptions survived."""
        threads: dict[str, Any] = {"control": self.control.health(), "http": self.http.health()}
        threads |= self.transfers.health()
        observing = self.observers.health()
        return threads | ({"observers": observing} if observing else {})


def assemble(record: BackendRecord, role: Role, args: KVArgs, config: TransferConfig, observers: Observers) -> Parts:
    """Make a manager's parts: opens the transport, registers the memory and binds the control socket, nothing more."""
    info = record.info
    direction = _check_capabilities(record, args, config)
    if config.bootstrap_addr is not None:
        parse_address(config.bootstrap_addr)
    instance_id = uuid.uuid4().hex
    label = f"{role.value} rank " + ".".join(str(rank) for rank in args.topology.ranks)
    logger = logging.getLogger(f"kv_core.{info.name}.{role.value}")
    rules = Rules(args, role)
    check_mapped(rules.layout.regions())
    channel = ControlChannel(config.host, config.control_port, config.advertised_host, config.max_message_bytes, logger)
    transport = record.transport(TransportContext(role, instance_id, config, direction))
    try:
        FabricRule(config.require_transport).check_possible(transport.fabrics(), info.name)
        transport.register_memory(rules.layout.regions())
        introduction = Introduction(
            fields_of(args, info.name, info.version, version("kv-core"), direction), rules.layout.to_wire(),
            transport.local_descriptor(), channel.open(), label, describe_process(),
        )  # fmt: skip
        me = Identity(
            role, info.name, instance_id, introduction.endpoint, introduction, Capability.FENCE in info.capabilities,
            direction,
        )  # fmt: skip
        machine = PrefillMachine(me, config, rules) if role is Role.PREFILL else DecodeMachine(me, config, rules)
        return _connect(record, args, config, observers, transport, channel, machine, rules, logger)
    except BaseException:
        channel.close()
        transport.close()
        raise


def _connect(
    record: BackendRecord, args: KVArgs, config: TransferConfig, observers: Observers, transport: Transport,
    channel: ControlChannel, machine: PrefillMachine | DecodeMachine, rules: Rules, logger: logging.Logger,
) -> Parts:  # fmt: skip
    name = f"kv-{machine.me.role.value}-{machine.me.instance_id[:6]}"
    told = ObserverThread(observers, f"{name}-observers", FlightLog() if config.flight_recorder else None)
    runner = Runner(machine, channel.wake, told.put)
    transfers = TransferEngine(
        transport, rules.layout, config, MachineSink(runner, machine), monotonic, logger,
        capabilities=record.info.capabilities, direction=machine.me.direction, moves=machine.me.moves,
    )  # fmt: skip
    runner.transfers = transfers
    http = HttpService(machine.me.instance_id, probe_interval_s=config.probe_interval_s, logger=logger)
    probe_handler: list[Callable[[str, ProbeResult], None]] = []

    def on_route(addr: str, route: Any) -> None:
        if isinstance(machine, DecodeMachine):
            runner.call(machine.on_route, addr, route)

    def on_probe(addr: str, result: ProbeResult) -> None:
        probe_handler[0](addr, result)  # the manager's, which does not exist yet

    def on_proven_dead(name: str) -> None:
        runner.call(machine.on_proven_dead, name)

    web = BootstrapWeb(http, on_route, on_probe)
    control = ControlLoop(
        channel, runner, Codec(config.max_message_bytes), web.perform, on_proven_dead,
        transfers.stalled_s, logger,
        f"{name}-control",
    )  # fmt: skip
    host, port = parse_address(machine.me.endpoint.removeprefix("tcp://"))
    place = args.topology

    def registration() -> RankRegistration:
        return RankRegistration(
            instance_id=machine.me.instance_id, ranks=place.ranks, sizes=place.sizes, rank_ip=host, rank_port=port,
            page_size=args.page_size, kv_cache_dtype=args.dtype, kv_layout=args.kv_layout, backend=record.info.name,
            protocol_version=PROTOCOL_VERSION, progress_age_s=transfers.stalled_s(), core_version=version("kv-core"),
            backend_version=record.info.version,
        )  # fmt: skip

    return Parts(
        logger, rules, machine, runner, channel, control, transfers, http, told,
        SwitchInterval(config.switch_interval_s), registration, probe_handler,
    )  # fmt: skip


def _check_capabilities(record: BackendRecord, args: KVArgs, config: TransferConfig) -> Direction:
    able = record.info.capabilities
    for pool in args.pools():
        needed = NEEDED_FOR.get(pool.kind)
        if needed is not None and needed not in able:
            raise NotSupported(f"pool {pool.name!r} in {pool.kind.value} memory", needed.value)
    if args.states and Capability.STATE not in able:
        raise NotSupported(f"state pools {[pool.name for pool in args.states]}", Capability.STATE.value)
    direction = config.direction or (Direction.WRITE if Capability.WRITE in able else Direction.READ)
    what, needed = MOVING[direction]
    if needed not in able:
        raise NotSupported(what, needed.value)
    return direction

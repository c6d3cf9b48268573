"""What a check gets: nodes of each kind, random numbers that repeat, and a place to say how far it came."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kv_conformance.catalog import Check
from kv_conformance.harness import Fault, Harness, Setting
from kv_conformance.nodes.face import FaceNode, Pair
from kv_conformance.nodes.face_server import FaceOrder, FaceServer
from kv_conformance.nodes.memory import Memory, Shape
from kv_conformance.nodes.process import NodeError, Process, prepare
from kv_conformance.nodes.wire import WireNode
from kv_conformance.nodes.wire_server import WireOrder, WireServer
from kv_conformance.outcomes import Untestable
from kv_core import BackendRecord, BootstrapServer, Capability, Direction, KVCoreError, Role
from kv_core.registry import read_record

if TYPE_CHECKING:
    from typing_extensions import Self

Node = FaceNode | WireNode
_Node = TypeVar("_Node", FaceNode, WireNode)
QUICK: Mapping[str, Any] = {
    "draining_timeout_s": 2.0, "close_timeout_s": 2.0, "probe_interval_s": 0.25,
}  # fmt: skip
"""Settings of every manager here that are not core's defaults: so that a check need not wait for long."""


class Env:
    """One check's surroundings. Ends every process that it made; nothing of it outlives the check.

    random: seeded by the check and the run's seed. notes: what is shown when the check fails.
    """

    def __init__(self, backend: str, harness: Harness, check: Check, seed: int) -> None:
        self.backend = backend
        self.harness = harness
        self.check = check
        self.seed = seed
        self.patience_s = harness.patience_s
        self.random = np.random.default_rng([seed, zlib.crc32(check.id.encode())])
        self.reached_points: set[str] = set()
        self.notes: list[str] = []
        self.fabrics: set[str] = set()
        self._nodes: list[Node] = []
        self._server: BootstrapServer | None = None
        prepare(backend)

    # -- what is known of the backend ------------------------------------------------------------------------------

    @property
    def record(self) -> BackendRecord:
        """The backend's record, read without its engine."""
        return read_record(self.backend)

    def declares(self, capability: Capability) -> bool:
        """Whether the backend declares it."""
        return capability in self.record.info.capabilities

    # -- how far a check came --------------------------------------------------------------------------------------

    def reached(self, point: str) -> None:
        """Say that what the check is about has really happened: one of its ``reaches``."""
        assert point in self.check.reaches, f"{self.check.id} declares no point {point!r}"
        self.reached_points.add(point)

    def wait_until(self, condition: Callable[[], object], what: str, limit_s: float | None = None) -> None:
        """Wait for something that must happen."""
        limit = self.patience_s if limit_s is None else limit_s
        deadline = monotonic() + limit
        while not condition():
            assert monotonic() < deadline, f"{what}: not within {limit:.0f} s"
            sleep(0.002)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def setting(self, role: Role, fault: Fault | None = None) -> Setting:
        """The harness's setting. Raises ``Untestable`` where the fault can't be made."""
        setting = self.harness.setting(role, fault)
        if setting is None:
            what = "such a node" if fault is None else f"the fault {fault.value!r}"
            raise Untestable(f"the harness has no setting for {what} with role {role.value}")
        return setting

    @property
    def addr(self) -> str:
        """Address of the check's own bootstrap server, which runs in the suite's process."""
        if self._server is None:
            self._server = BootstrapServer(port=0)
        return self._server.address

    def face(
        self, role: Role, shape: Shape | None = None, *, fault: Fault | None = None, config: Mapping[str, Any] | None = None,
        args: Mapping[str, Any] | None = None, observed: bool = False, bootstrap: int | None = None,
        observer: Callable[[FaceServer], object] | None = None, name: str | None = None, memory: Memory | None = None,
        wait: bool = True,
    ) -> FaceNode:  # fmt: skip
        """A process with a manager. Its memory is random for prefill and poisoned for decode, unless it is given.

        config, args: what differs from the defaults in ``TransferConfig`` and ``KVArgs``. fault: that it can be made.
        bootstrap: a bootstrap server of its own at this port (0: any) instead of the check's. observed: keep the events.
        observer: see ``FaceOrder``.
        wait: otherwise ``node.process.started()`` has to be called.
        """
        setting = self.setting(role, fault)
        memory = memory or self._memory(role, shape or Shape())
        settings = {**QUICK, "options": dict(setting.options), **(config or {})}
        if role is Role.PREFILL and bootstrap is None:
            settings.setdefault("bootstrap_addr", self.addr)
        order = FaceOrder(
            self.backend,
            role,
            memory.shape,
            memory.ticket,
            settings,
            dict(args or {}),
            observed,
            bootstrap,
            observer,
        )
        process = self._process(name or role.value, FaceServer, order, setting)
        return self._add(FaceNode(process, memory, self.patience_s), wait)

    def pair(
        self, shape: Shape | None = None, *, fault: Fault | None = None, config: Mapping[str, Any] | None = None,
        prefill: Mapping[str, Any] | None = None, decode: Mapping[str, Any] | None = None,
    ) -> Pair:  # fmt: skip
        """A prefill and a decode process. config: for both; prefill, decode: further arguments of ``face`` for one."""
        ends = [
            self.face(role, shape, fault=fault, wait=False, **{"config": config, **dict(more or {})})
            for role, more in ((Role.PREFILL, prefill), (Role.DECODE, decode))
        ]
        for end in ends:
            end.process.started()
        return Pair(ends[0], ends[1], self.addr, self.random)

    def wire(
        self, role: Role, shape: Shape | None = None, *, fault: Fault | None = None, config: Mapping[str, Any] | None = None,
        direction: Direction = Direction.WRITE, register: bool = True, name: str | None = None,
        memory: Memory | None = None, wait: bool = True,
    ) -> WireNode:  # fmt: skip
        """A process with a transport and nothing else. Its memory is random for prefill and poisoned for decode, unless it is
        given.
        """
        setting = self.setting(role, fault)
        memory = memory or self._memory(role, shape or Shape())
        settings = {"options": dict(setting.options), **(config or {})}
        order = WireOrder(self.backend, role, memory.shape, memory.ticket, settings, direction, register)
        process = self._process(name or role.value, WireServer, order, setting)
        return self._add(WireNode(process, memory, self.patience_s), wait)

    def ends(self, shape: Shape | None = None, *, fault: Fault | None = None) -> tuple[WireNode, WireNode]:
        """Two transports: (the one that writes, the one that is written to)."""
        writer, target = (self.wire(role, shape, fault=fault, wait=False) for role in (Role.PREFILL, Role.DECODE))
        writer.process.started()
        target.process.started()
        return writer, target

    def _add(self, node: _Node, wait: bool) -> _Node:
        self._nodes.append(node)
        if wait:
            node.process.started()
        return node

    def _memory(self, role: Role, shape: Shape) -> Memory:
        memory = Memory(shape)
        if role is Role.PREFILL:
            memory.randomise(self.random)
        else:
            memory.poison()
        return memory

    def _process(self, name: str, build: Any, order: Any, setting: Setting) -> Process:
        return Process(f"{name}-{len(self._nodes)}", build, (order,), setting.environment, self.patience_s)

    # -- the end ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with ExitStack() as ending:  # whatever is met on the way, no process stays
            if self._server is not None:
                ending.callback(self._server.close)
            for node in self._nodes:
                ending.callback(node.memory.close)
                ending.callback(node.process.end)
            for node in self._nodes:
                self._see_fabric(node)
                if kind is not None:
                    self.notes.append(f"{node.process.name}: {node.process.words()}")

    def _see_fabric(self, node: Node) -> None:
        if not isinstance(node, FaceNode) or node.process.frozen or not node.process.alive:
            return
        try:
            self.fabrics.update(node.process.ask("fabrics"))
        except (NodeError, KVCoreError, OSError, ValueError):
            # The check has said what is wrong, or it asked for what can't be answered any more; or this node could not be made,
            # as the one before it, and what it says to that is still to be read.
            return

"""The fault script: makes the software NIC misbehave on purpose, the same way each time for the same seed.

``TransferConfig.options["faults"]`` is a list of ``Fault`` (or of dicts with the same names), ``options["seed"]`` a
number. Submissions of a transport are numbered from 1; a fault strikes at ``nth``, at every ``every``-th, or with
``probability``, ``times`` times at the most. What each kind looks like from outside stands in ``KINDS``.

Under every fault the transport stays honest about quiescence: that is what core builds on.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from time import monotonic
from typing import Any

from kv_core import InvalidConfig, Region, RegistrationError
from kv_core.contract.transport import Prepared, Transfer, TransferBatch, TransferProgress, TransportContext
from kv_fake.outbound import FakeTransfer
from kv_fake.transport import SoftwareNic

KINDS = {
    "delay": "the transfer's bytes leave `seconds` later",
    "drop": "the bytes never leave: pending until it is cancelled or the peer is removed",
    "duplicate": "the bytes are sent twice; done when both copies have landed",
    "reorder": "the bytes leave after those of the next submission (or after `seconds`)",
    "corrupt": "one byte arrives flipped, and nobody notices but a digest",
    "hold": "the bytes leave when `release_held()` is called, or after `seconds`",
    "slow": "the bytes leave late enough for `rate` bytes a second",
    "freeze": "this NIC stands still, in both directions, for `seconds`; the process lives",
    "die": "the process is killed (SIGKILL)",
    "fail_registration": "registering the `nth` region fails with errno ENOMEM",
    "late_write": "reported failed and not quiescent at once, written `seconds` later, then quiescent",
}
"""Each kind, and what is seen of it."""


@dataclass(frozen=True)
class Fault:
    """One rule of a fault script."""

    kind: str
    nth: int | None = None
    every: int | None = None
    probability: float = 0.0
    seconds: float = 1.0
    rate: float = 1e6
    times: int = 1_000_000_000

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidConfig(f"fault kind {self.kind!r} is unknown; kinds are {', '.join(KINDS)}")
        if (self.nth is None) + (self.every is None) + (self.probability == 0.0) != 2:
            raise InvalidConfig(f"fault {self.kind!r}: give one of nth, every and probability")

    @classmethod
    def of(cls, rule: object) -> Fault:
        """A fault from what stands in the options. Raises ``InvalidConfig``."""
        if isinstance(rule, cls):
            return rule
        names = [field.name for field in fields(cls)]
        if not isinstance(rule, Mapping) or not set(rule) <= set(names) or "kind" not in rule:
            raise InvalidConfig(f"a fault is a mapping with 'kind' and any of {', '.join(names[1:])}; got {rule!r}")
        return cls(**rule)


class Script:
    """Says which faults strike a submission."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        unknown = set(options) - {"faults", "seed"}
        if unknown:
            raise InvalidConfig(f"options {sorted(unknown)} are unknown; this backend knows 'faults' and 'seed'")
        self.faults = tuple(Fault.of(rule) for rule in options.get("faults", ()))
        self._random = random.Random(options.get("seed", 0))  # noqa: S311 - faults shall repeat, not surprise
        self._count = 0
        self._struck = [0] * len(self.faults)

    def strike(self) -> list[Fault]:
        """The faults of the next submission, in the script's order."""
        self._count += 1
        struck = []
        for number, fault in enumerate(self.faults):
            by_number = self._count == fault.nth or (fault.every is not None and self._count % fault.every == 0)
            by_chance = fault.probability > 0 and self._random.random() < fault.probability
            if (by_number or by_chance) and self._struck[number] < fault.times and fault.kind != "fail_registration":
                self._struck[number] += 1
                struck.append(fault)
        return struck

    def refused_region(self) -> int | None:
        """Which region can't be registered, counted from 1."""
        return next((fault.nth for fault in self.faults if fault.kind == "fail_registration"), None)

    def position(self, nbytes: int) -> int:
        """Which byte to corrupt."""
        return self._random.randrange(nbytes)


class FakeTransport(SoftwareNic):
    """The software NIC under a fault script; without one it is just the software NIC."""

    def __init__(self, context: TransportContext) -> None:
        self._script = Script(context.config.options)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._held: list[FakeTransfer] = []
        self._waiting_for_next: list[FakeTransfer] = []
        self._twins: dict[FakeTransfer, FakeTransfer] = {}
        self._silent: list[FakeTransfer] = []
        self._ghosts: dict[FakeTransfer, FakeTransfer] = {}  # reported as failed -> written all the same
        self._frozen_until = 0.0
        super().__init__(context)

    def register_memory(self, regions: Sequence[Region]) -> None:
        """See ``Transport``."""
        refused = self._script.refused_region()
        if refused is not None and refused <= len(regions):
            raise RegistrationError(
                f"region {refused} of {len(regions)} could not be registered (fault script)",
                region=refused - 1, errno=12,
            )  # fmt: skip
        super().register_memory(regions)

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        """See ``Transport``."""
        struck = self._script.strike() if self._script.faults else []
        transfer = self.frame(prepared, batch)
        if any(fault.kind == "late_write" for fault in struck):
            return self._fail_and_write(transfer, next(f.seconds for f in struck if f.kind == "late_write"))
        wait, stays = self._act(transfer, struck, prepared, batch)
        if wait and not stays:
            self._at(wait, lambda: self._post_late(transfer))
        elif not stays:
            self.post(transfer)
            self._post_twin(transfer)
        self._release_reordered(transfer)
        return transfer

    def _act(
        self, transfer: FakeTransfer, struck: list[Fault], prepared: Prepared, batch: TransferBatch
    ) -> tuple[float, bool]:
        """Let the faults happen; returns how many seconds the bytes wait, and whether they stay for now."""
        wait, stays = 0.0, False
        for fault in struck:
            if fault.kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault.kind == "freeze":
                self._freeze(fault.seconds)
            elif fault.kind == "corrupt" and transfer.nbytes:
                self._corrupt(transfer)
            elif fault.kind == "duplicate" and transfer.nbytes:
                self._twins[transfer] = self.frame(prepared, batch)
            elif fault.kind in ("slow", "delay"):
                wait += transfer.nbytes / fault.rate if fault.kind == "slow" else fault.seconds
            elif fault.kind in ("hold", "reorder", "drop"):
                self._keep(transfer, fault)
                stays = True
        return wait, stays

    def _keep(self, transfer: FakeTransfer, fault: Fault) -> None:
        if fault.kind == "drop":
            self._silent.append(transfer)
        else:
            (self._held if fault.kind == "hold" else self._waiting_for_next).append(transfer)
            self._at(fault.seconds, self._releaser(transfer))

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        """See ``Transport``."""
        if self._is_frozen():
            return
        while self._later and self._later[0][0] <= monotonic():
            heapq.heappop(self._later)[2]()
        for ghost, written in self._ghosts.items():
            ghost.quiescent = written.quiescent
        for record in super().progress(transfers):
            twin = self._twins.get(record.transfer)
            if twin is None or twin.quiescent:
                yield record

    def release(self, transfer: Transfer) -> None:
        """See ``Transport``."""
        assert isinstance(transfer, FakeTransfer), "made by submit()"
        self._twins.pop(transfer, None)
        self._ghosts.pop(transfer, None)
        super().release(transfer)

    def cancel(self, transfer: Transfer) -> None:
        """See ``Transport``: what has not left yet never will."""
        assert isinstance(transfer, FakeTransfer), "made by submit()"
        if not self._forget(transfer, "cancelled before a byte was sent"):
            super().cancel(transfer)

    def remove_peer(self, peer: Any) -> None:
        """See ``Transport``."""
        super().remove_peer(peer)
        for transfer in [*self._held, *self._waiting_for_next, *self._silent]:
            if transfer.peer == peer:
                self._forget(transfer, "the peer was removed")

    def wait(self, timeout_s: float) -> None:
        """See ``Transport``."""
        now = monotonic()
        if self._is_frozen():
            timeout_s = min(timeout_s, self._frozen_until - now)
        elif self._later:
            timeout_s = min(timeout_s, self._later[0][0] - now)
        super().wait(timeout_s)
        self._is_frozen()  # thaws, also when there is nothing to ask ``progress`` about

    def close(self) -> None:
        """See ``Transport``."""
        self._frozen_until = 0.0
        self._is_frozen()
        super().close()

    def release_held(self) -> None:
        """Let go what ``hold`` holds. Owner thread, or while it waits."""
        for transfer in list(self._held):
            self._releaser(transfer)()
        self.wake()

    # -- how ---------------------------------------------------------------------------------------------------

    def _at(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (monotonic() + seconds, next(self._order), action))

    def _releaser(self, transfer: FakeTransfer) -> Callable[[], None]:
        def release() -> None:
            for waiting in (self._held, self._waiting_for_next):
                if transfer in waiting:
                    waiting.remove(transfer)
                    self._post_late(transfer)

        return release

    def _release_reordered(self, newest: FakeTransfer) -> None:
        for transfer in list(self._waiting_for_next):
            if transfer is not newest:
                self._releaser(transfer)()

    def _post_late(self, transfer: FakeTransfer) -> None:
        """Post what was kept back; its peer may be gone by now."""
        if transfer.peer in self._peers:
            self.post(transfer)
            self._post_twin(transfer)
        else:
            transfer.fail("the peer was removed", quiescent=True)

    def _post_twin(self, transfer: FakeTransfer) -> None:
        twin = self._twins.get(transfer)
        if twin is not None:
            self.post(twin)

    def _forget(self, transfer: FakeTransfer, why: str) -> bool:
        for waiting in (self._held, self._waiting_for_next, self._silent):
            if transfer in waiting:
                waiting.remove(transfer)
                transfer.fail(why, quiescent=True)
                return True
        return False

    def _fail_and_write(self, transfer: FakeTransfer, seconds: float) -> FakeTransfer:
        ghost = FakeTransfer(transfer.peer, 0, b"", None, transfer.nbytes)
        ghost.fail("the fabric reported an error (fault script)", quiescent=False)
        self._ghosts[ghost] = transfer
        self._at(seconds, lambda: self._post_late(transfer))
        return ghost

    def _freeze(self, seconds: float) -> None:
        self._frozen_until = monotonic() + seconds
        self._nic.running.clear()  # the threads stop at their next system call
        for connection in self._watched.values():
            self._selector.unregister(connection)
        self._watched.clear()

    def _is_frozen(self) -> bool:
        if monotonic() < self._frozen_until:
            return True
        self._nic.running.set()
        return False

    def _watch(self) -> None:
        if not self._is_frozen():
            super()._watch()

    def _corrupt(self, transfer: FakeTransfer) -> None:
        assert transfer.pieces is not None, "it moves bytes"
        if self._reads:
            transfer.garble = transfer.pieces.address_of(self._script.position(transfer.nbytes))
            return
        transfer.pieces.flip_bit(len(transfer.head) + self._script.position(transfer.nbytes))

"""Senders and receivers: thin handles on a room. Each call decides under the manager's lock and waits for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kv_core.contract.enums import KVPoll
from kv_core.contract.failures import Failure
from kv_core.contract.interfaces import BaseKVReceiver, BaseKVSender, Indices, Ready
from kv_core.contract.memory import AUX_POOL, KV_POOL, KVArgs
from kv_core.contract.records import KVTransferMetric
from kv_core.layout import check_indices
from kv_core.protocol.rooms import Offer, Room

if TYPE_CHECKING:
    from kv_core.protocol.decode import DecodeMachine
    from kv_core.protocol.prefill import PrefillMachine
    from kv_core.runtime.runner import Runner

U64 = npt.NDArray[np.uint64]


class HandleChecks:
    """Checks an engine's arguments against its own pools; every problem is a ``ValueError`` with a sentence."""

    def __init__(self, args: KVArgs, max_indices: int) -> None:
        self._items = {pool.name: pool.num_items for pool in args.pools()}
        self._max_indices = max_indices

    def items(self, pool: str, values: Indices) -> U64:
        """Indices into a pool, as a new uint64 array."""
        if pool not in self._items:
            raise ValueError(f"there is no pool {pool!r} here; pools are {sorted(self._items)}")
        array = np.asarray(values)
        if array.size > self._max_indices:
            raise ValueError(f"{array.size} {pool} indices; TransferConfig.max_indices is {self._max_indices}")
        # A copy: the engine may use its array again at once.
        return np.array(check_indices(array, self._items[pool], f"{pool} indices"), np.uint64)

    def states(self, values: Mapping[str, Indices] | None) -> dict[str, U64]:
        """Indices into state pools."""
        for pool in values or {}:
            if pool in (KV_POOL, AUX_POOL):
                raise ValueError(f"state_indices names the {pool} pool, which has an argument of its own")
        return {pool: self.items(pool, indices) for pool, indices in (values or {}).items()}

    def row(self, index: int | None) -> int | None:
        """Index of an auxiliary row."""
        if index is None:
            return None
        return int(self.items(AUX_POOL, np.asarray([index]))[0])

    def count(self, what: str, value: object) -> int:
        """A number of pages."""
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise ValueError(f"{what} must be an int of at least 0, got {value!r}")
        if value > self._max_indices:
            raise ValueError(f"{what} is {value}; TransferConfig.max_indices is {self._max_indices}")
        return int(value)


class _RoomHandle:
    """What both handles do the same way: they read the room, and never touch it themselves."""

    def __init__(self, runner: Runner, room: Room, checks: HandleChecks) -> None:
        self._runner = runner
        self._room = room
        self._checks = checks

    @property
    def room(self) -> int:
        """The bootstrap_room that this handle was created for (-1 if that was no valid number)."""
        return self._room.number

    def poll(self) -> KVPoll:
        """See ``BaseKVHandle.poll``."""
        return self._room.poll

    def failure(self) -> Failure | None:
        """See ``BaseKVHandle.failure``."""
        return self._room.failure if self._room.poll is KVPoll.Failed else None

    def get_transfer_metric(self) -> KVTransferMetric:
        """See ``BaseKVHandle.get_transfer_metric``."""
        return self._room.metric

    def is_release_safe(self) -> bool:
        """See ``BaseKVHandle.is_release_safe``."""
        # Both are needed: the pages are given back before the end is shown, so that who sees an end knows of its pages at once;
        # in between the room has not ended yet for anybody who looks.
        return self._room.release_safe and self._room.poll.terminal

    def abort(self, reason: str = "") -> None:
        """See ``BaseKVHandle.abort``."""
        self._runner.call(self._runner.machine.abort, self._room, reason)

    def clear(self) -> None:
        """See ``BaseKVHandle.clear``."""
        self._runner.call(self._runner.machine.clear, self._room)

    def _invalid(self, call: str, error: Exception) -> None:
        self._runner.call(self._runner.machine.invalid, self._room, f"{call}: {error}")


class CommonKVSender(_RoomHandle, BaseKVSender):
    """Core's sender, for every backend."""

    @property
    def decode_prefix_len(self) -> int:
        """See ``BaseKVSender.decode_prefix_len``."""
        return self._room.decode_prefix_len

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        """See ``BaseKVSender.init``."""
        machine: PrefillMachine = self._runner.machine  # type: ignore[assignment]
        try:
            pages = self._checks.count("num_kv_indices", num_kv_indices)
            row = self._checks.row(aux_index)
        except ValueError as error:
            self._invalid("init()", error)
            return
        self._runner.call(machine.init, self._room, pages, row)

    def send(
        self,
        kv_indices: Indices,
        *,
        state_indices: Mapping[str, Indices] | None = None,
        layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:
        """See ``BaseKVSender.send``."""
        machine: PrefillMachine = self._runner.machine  # type: ignore[assignment]
        try:
            items = self._checks.items(KV_POOL, kv_indices)
            states = self._checks.states(state_indices)
            if layers is not None and not isinstance(layers, range):
                raise ValueError(f"layers must be a range or None, got {type(layers).__name__}")
            if ready is not None and not callable(getattr(ready, "query", None)):
                raise ValueError(f"ready must have a query() method, got {type(ready).__name__}")
        except (ValueError, TypeError) as error:
            self._invalid("send()", error)
            return
        self._runner.call(machine.send, self._room, items, states, layers, ready)


class CommonKVReceiver(_RoomHandle, BaseKVReceiver):
    """Core's receiver, for every backend."""

    def init(self, prefill_dp_rank: int = 0) -> None:
        """See ``BaseKVReceiver.init``."""
        machine: DecodeMachine = self._runner.machine  # type: ignore[assignment]
        try:
            rank = self._checks.count("prefill_dp_rank", prefill_dp_rank)
        except ValueError as error:
            self._invalid("init()", error)
            return
        self._runner.call(machine.init, self._room, rank)

    def send_metadata(
        self,
        kv_indices: Indices,
        *,
        aux_index: int | None = None,
        state_indices: Mapping[str, Indices] | None = None,
        decode_prefix_len: int = 0,
    ) -> None:
        """See ``BaseKVReceiver.send_metadata``."""
        machine: DecodeMachine = self._runner.machine  # type: ignore[assignment]
        try:
            pages = self._checks.items(KV_POOL, kv_indices)
            if np.unique(pages).size != pages.size:
                raise ValueError("kv_indices names a page twice: two source pages can't land in one")
            prefix = self._checks.count("decode_prefix_len", decode_prefix_len)
            offer = Offer(pages, self._checks.states(state_indices), self._checks.row(aux_index), prefix)
        except (ValueError, TypeError) as error:
            self._invalid("send_metadata()", error)
            return
        self._runner.call(machine.offer, self._room, offer)

"""Warm-up requests: rooms whose bootstrap host is ``FAKE_BOOTSTRAP_HOST`` move nothing, on any backend, and succeed.

They touch no table, no thread and no socket, emit no event and have no metric (SGLang's fake sender and receiver).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kv_core.contract.enums import FailureCode, FailureStage, KVPoll, Role, Side
from kv_core.contract.failures import Failure
from kv_core.contract.interfaces import BaseKVReceiver, BaseKVSender, Indices, Ready
from kv_core.contract.records import KVTransferMetric
from kv_core.protocol.handshake import Coverage


class _NullHandle:
    _role: Role

    def __init__(self, room: int) -> None:
        self._number = room
        self._state = KVPoll.WaitingForInput
        self._failure: Failure | None = None

    @property
    def room(self) -> int:
        """The bootstrap_room that this handle was created for."""
        return self._number

    def poll(self) -> KVPoll:
        """WaitingForInput until the engine has said everything, then Success."""
        return self._state

    def get_transfer_metric(self) -> KVTransferMetric:
        """Nothing was transferred: every field is None."""
        return KVTransferMetric()

    def failure(self) -> Failure | None:
        """The abort, if there was one."""
        return self._failure

    def is_release_safe(self) -> bool:
        """Nothing ever touches the pages of such a room: safe as soon as it has ended."""
        return self._state.terminal

    def abort(self, reason: str = "") -> None:
        """Fail the room."""
        if not self._state.terminal:
            text = reason or f"the {self._role.value} engine aborted the warm-up room"
            stage, code = FailureStage.QUEUED, FailureCode.ABORTED_LOCAL
            self._failure = Failure(stage, code, text, Side.of(self._role))
            self._state = KVPoll.Failed

    def clear(self) -> None:
        """End the room."""
        self.abort("the room was cleared while it was live")

    def _succeed(self) -> None:
        if not self._state.terminal:
            self._state = KVPoll.Success


class NullSender(_NullHandle, BaseKVSender):
    """Sender of a warm-up room."""

    _role = Role.PREFILL

    def __init__(self, room: int, coverage: Callable[[int], Coverage]) -> None:
        super().__init__(room)
        self._new_coverage = coverage
        self._coverage: Coverage | None = None

    @property
    def decode_prefix_len(self) -> int:
        """Always 0."""
        return 0

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        """Remember how many pages would come."""
        self._coverage = self._new_coverage(num_kv_indices)

    def send(
        self,
        kv_indices: Indices,
        *,
        state_indices: Mapping[str, Indices] | None = None,
        layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:
        """Count the pages; the last one ends the room."""
        if self._coverage is not None:
            self._coverage.advance(len(kv_indices), layers)
            if self._coverage.complete:
                self._succeed()


class NullReceiver(_NullHandle, BaseKVReceiver):
    """Receiver of a warm-up room."""

    _role = Role.DECODE

    def init(self, prefill_dp_rank: int = 0) -> None:
        """There is nobody to find."""

    def send_metadata(
        self,
        kv_indices: Indices,
        *,
        aux_index: int | None = None,
        state_indices: Mapping[str, Indices] | None = None,
        decode_prefix_len: int = 0,
    ) -> None:
        """End the room."""
        self._succeed()

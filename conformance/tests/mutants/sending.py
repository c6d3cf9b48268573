"""Backends whose senders and receivers take the engine's calls wrongly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kv_core import KVPoll
from kv_core.contract.interfaces import Indices, Ready
from kv_core.contract.memory import KV_POOL
from kv_core.protocol.rooms import Offer
from kv_core.runtime import CommonKVReceiver, CommonKVSender
from conformance.tests.mutants.base import mutant


@mutant("source_read_before_ready", "KV-XFER-18")
class SourceReadBeforeReady(CommonKVSender):
    """The source is read when ``ready.query()`` says so: here at once."""

    def send(
        self, kv_indices: Indices, *, state_indices: Mapping[str, Indices] | None = None, layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:  # fmt: skip
        super().send(kv_indices, state_indices=state_indices, layers=layers)


@mutant("keeps_the_engines_array", "KV-XFER-19")
class KeepsTheEnginesArray(CommonKVSender):
    """``kv_indices`` is copied, and the engine may use its array again: here it is kept as it is."""

    def send(
        self, kv_indices: Indices, *, state_indices: Mapping[str, Indices] | None = None, layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:  # fmt: skip
        good = isinstance(kv_indices, np.ndarray) and kv_indices.dtype == np.uint64
        try:
            self._checks.items(KV_POOL, kv_indices)
            states = self._checks.states(state_indices)
        except ValueError:
            good = False
        if good:
            machine = self._runner.machine
            self._runner.call(machine.send, self._room, kv_indices, states, layers, ready)  # type: ignore[attr-defined]
        else:
            super().send(kv_indices, state_indices=state_indices, layers=layers, ready=ready)


@mutant("keeps_the_receivers_array", "KV-XFER-19")
class KeepsTheReceiversArray(CommonKVReceiver):
    """``kv_indices`` of ``send_metadata`` is copied: here it is kept as it is until the room moves on."""

    def send_metadata(
        self, kv_indices: Indices, *, aux_index: int | None = None,
        state_indices: Mapping[str, Indices] | None = None, decode_prefix_len: int = 0,
    ) -> None:  # fmt: skip
        if isinstance(kv_indices, np.ndarray) and kv_indices.dtype == np.uint64 and kv_indices.ndim == 1:
            offer = Offer(kv_indices, self._checks.states(state_indices), self._checks.row(aux_index), decode_prefix_len)
            self._runner.call(self._runner.machine.offer, self._room, offer)  # type: ignore[attr-defined]
        else:
            super().send_metadata(
                kv_indices, aux_index=aux_index, state_indices=state_indices, decode_prefix_len=decode_prefix_len
            )


@mutant("layers_are_ignored_by_send", "KV-XFER-20")
class LayersAreIgnoredBySend(CommonKVSender):
    """A chunk may be of some layers: here it is taken for all, and the room ends too early."""

    def send(
        self, kv_indices: Indices, *, state_indices: Mapping[str, Indices] | None = None, layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:  # fmt: skip
        if layers is None or layers.start == 0:
            super().send(kv_indices, state_indices=state_indices, ready=ready)


@mutant("send_waits", "KV-POLL-8")
class SendWaits(CommonKVSender):
    """``send`` never blocks: here it waits for the end of the room."""

    def send(
        self, kv_indices: Indices, *, state_indices: Mapping[str, Indices] | None = None, layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:  # fmt: skip
        super().send(kv_indices, state_indices=state_indices, layers=layers, ready=ready)
        while self._room.complete and not self._room.ended:
            self._runner._lock.acquire(timeout=0.001) and self._runner._lock.release()


@mutant("wrong_indices_raise", "KV-FAIL-11")
class WrongIndicesRaise(CommonKVSender):
    """A request that can't work is a failed room: here ``send`` raises."""

    def send(
        self, kv_indices: Indices, *, state_indices: Mapping[str, Indices] | None = None, layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:  # fmt: skip
        self._checks.items(KV_POOL, kv_indices)
        super().send(kv_indices, state_indices=state_indices, layers=layers, ready=ready)


@mutant("page_named_twice", "KV-FAIL-12")
class PageNamedTwice(CommonKVReceiver):
    """Two source pages can't land in one: here a page that is named twice is taken."""

    def send_metadata(
        self, kv_indices: Indices, *, aux_index: int | None = None,
        state_indices: Mapping[str, Indices] | None = None, decode_prefix_len: int = 0,
    ) -> None:  # fmt: skip
        pages = np.asarray(kv_indices)
        if pages.ndim == 1 and np.unique(pages).size != pages.size:
            offer = Offer(self._checks.items(KV_POOL, pages), self._checks.states(state_indices),
                          self._checks.row(aux_index), decode_prefix_len)  # fmt: skip
            self._runner.call(self._runner.machine.offer, self._room, offer)  # type: ignore[attr-defined]
            return
        super().send_metadata(
            kv_indices, aux_index=aux_index, state_indices=state_indices, decode_prefix_len=decode_prefix_len
        )


@mutant("prefix_is_forgotten", "KV-XFER-21")
class PrefixIsForgotten(CommonKVSender):
    """decode_prefix_len is what decode has already: here always 0."""

    @property
    def decode_prefix_len(self) -> int:
        return 0


@mutant("success_of_a_wrong_count", "KV-FAIL-13")
class SuccessOfAWrongCount(CommonKVSender):
    """More pages than announced fail the room: here the rest is cut off in silence."""

    def send(
        self, kv_indices: Indices, *, state_indices: Mapping[str, Indices] | None = None, layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:  # fmt: skip
        expected = self._room.expected
        if expected is not None and layers is None and self._room.poll is not KVPoll.Failed:
            kv_indices = kv_indices[:expected]
        super().send(kv_indices, state_indices=state_indices, layers=layers, ready=ready)

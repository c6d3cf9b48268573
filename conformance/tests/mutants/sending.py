"""Backends whose senders and receivers take the engine's calls wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from threading import get_ident
from time import sleep
from typing import Any, ClassVar

import numpy as np

from conformance.tests.mutants.base import mutant
from kv_core import KVPoll
from kv_core.contract.interfaces import Indices, Ready
from kv_core.contract.memory import KV_POOL
from kv_core.protocol.rooms import Offer, Room
from kv_core.runtime import CommonKVReceiver, CommonKVSender


class Sending(CommonKVSender):
    """A sender whose ``send`` is another one."""

    def send(
        self, kv_indices: Indices, *, state_indices: Mapping[str, Indices] | None = None, layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:  # fmt: skip
        self.hand_over(kv_indices, state_indices, layers, ready)

    def hand_over(
        self, kv: Indices, states: Mapping[str, Indices] | None, layers: range | None, ready: Ready | None
    ) -> None:
        """What ``send`` does."""
        super().send(kv, state_indices=states, layers=layers, ready=ready)


@mutant("sixteen_chunks_at_most", "KV-XFER-11")
class SixteenChunksAtMost(Sending):
    """A room may come in any number of chunks: here those after the sixteenth are lost."""

    sent = 0

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        self.sent += 1
        if self.sent <= 16:
            super().hand_over(kv, states, layers, ready)


@mutant("small_integers_are_bytes", "KV-XFER-11")
class SmallIntegersAreBytes(Sending):
    """Indices may be of any integer dtype: here those of 16 bits are read as bytes."""

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        if isinstance(kv, np.ndarray) and kv.dtype == np.int16:
            kv = kv.view(np.uint8)[: kv.size]
        super().hand_over(kv, states, layers, ready)


@mutant("pages_of_the_last_room", "KV-XFER-12")
class PagesOfTheLastRoom(CommonKVReceiver):
    """Each room has its own pages: here two rooms that name theirs one after the other, and are under way at the same time,
    share those of the first.
    """

    last: ClassVar[tuple[Room, Any] | None] = None

    def send_metadata(
        self, kv_indices: Indices, *, aux_index: int | None = None,
        state_indices: Mapping[str, Indices] | None = None, decode_prefix_len: int = 0,
    ) -> None:  # fmt: skip
        before, size = PagesOfTheLastRoom.last, len(kv_indices)
        PagesOfTheLastRoom.last = (self._room, kv_indices)
        if before is not None and not before[0].ended and len(before[1]) == size and size > 4:
            kv_indices = before[1]
        super().send_metadata(
            kv_indices, aux_index=aux_index, state_indices=state_indices, decode_prefix_len=decode_prefix_len
        )


@mutant(
    "early_chunks_are_lost",
    "KV-XFER-14",
    sometimes={"KV-XFER-11": "on a busy machine decode has named its pages before prefill sends"},
)
class EarlyChunksAreLost(Sending):
    """Either side may come first: here what is sent before decode is there is lost."""

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        if self._room.poll is not KVPoll.Bootstrapping:
            super().hand_over(kv, states, layers, ready)


@mutant("empty_send_is_nothing", "KV-XFER-15")
class EmptySendIsNothing(Sending):
    """One empty send completes a room without pages: here it does nothing."""

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        if len(kv) or states:
            super().hand_over(kv, states, layers, ready)


@mutant("source_read_before_ready", "KV-XFER-19")
class SourceReadBeforeReady(Sending):
    """The source is read when ``ready.query()`` says so: here at once."""

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        super().hand_over(kv, states, layers, None)


@mutant("keeps_the_engines_array", "KV-XFER-21")
class KeepsTheEnginesArray(Sending):
    """``kv_indices`` is copied, and the engine may use its array again: here it is kept as it is, if its dtype is right."""

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        if isinstance(kv, np.ndarray) and kv.dtype == np.uint64 and not states and layers is None:
            machine: Any = self._runner.machine
            self._runner.call(machine.send, self._room, kv, {}, None, ready)
        else:
            super().hand_over(kv, states, layers, ready)


@mutant("keeps_the_receivers_array", "KV-XFER-21")
class KeepsTheReceiversArray(CommonKVReceiver):
    """``kv_indices`` of ``send_metadata`` is copied: here it is kept as it is, if its dtype is right."""

    def send_metadata(
        self, kv_indices: Indices, *, aux_index: int | None = None,
        state_indices: Mapping[str, Indices] | None = None, decode_prefix_len: int = 0,
    ) -> None:  # fmt: skip
        if isinstance(kv_indices, np.ndarray) and kv_indices.dtype == np.uint64 and not state_indices:
            offer = Offer(kv_indices, {}, aux_index, decode_prefix_len)
            machine: Any = self._runner.machine
            self._runner.call(machine.offer, self._room, offer)
        else:
            super().send_metadata(
                kv_indices, aux_index=aux_index, state_indices=state_indices, decode_prefix_len=decode_prefix_len
            )


@mutant("prefix_is_forgotten", "KV-XFER-22")
class PrefixIsForgotten(CommonKVSender):
    """decode_prefix_len is what decode has already: here always 0."""

    @property
    def decode_prefix_len(self) -> int:
        return 0


@mutant("layers_are_ignored_by_send", "KV-XFER-18")
class LayersAreIgnoredBySend(Sending):
    """A chunk may be of some layers: here the first one that is goes out on all of them, and the others are nothing."""

    sent = False

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        if layers is None or not self.sent:
            super().hand_over(kv, states, None, ready)
        self.sent = self.sent or (layers is not None and self._room.complete)


@mutant("wrong_indices_raise", "KV-FAIL-1")
class WrongIndicesRaise(Sending):
    """A call that can't be carried out fails the room: here ``send`` raises."""

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        self._checks.items(KV_POOL, kv)
        super().hand_over(kv, states, layers, ready)


@mutant("pages_beyond_are_cut_off", "KV-FAIL-1")
class PagesBeyondAreCutOff(Sending):
    """More pages than announced fail the room: here the rest is cut off in silence."""

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        expected = self._room.expected
        if isinstance(kv, (list, np.ndarray)) and expected is not None and len(kv) > expected:
            kv = kv[:expected]
        super().hand_over(kv, states, layers, ready)


@mutant("page_named_twice", "KV-FAIL-2")
class PageNamedTwice(CommonKVReceiver):
    """Two source pages can't land in one: here a page that is named twice is taken, once."""

    def send_metadata(
        self, kv_indices: Indices, *, aux_index: int | None = None,
        state_indices: Mapping[str, Indices] | None = None, decode_prefix_len: int = 0,
    ) -> None:  # fmt: skip
        pages = np.asarray(kv_indices)
        if pages.ndim == 1 and pages.dtype.kind in "iu" and 0 < np.unique(pages).size < pages.size < 50:
            kv_indices = list(dict.fromkeys(pages.tolist()))
        super().send_metadata(
            kv_indices, aux_index=aux_index, state_indices=state_indices, decode_prefix_len=decode_prefix_len
        )


@mutant("fills_up_what_decode_named", "KV-FAIL-3")
class FillsUpWhatDecodeNamed(CommonKVSender):
    """Prefill sends as many pages as decode named, or the room fails: here fewer are taken for as many as there are."""

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        named = [link.pages.size for link in self._room.links.values() if link.pages is not None]
        if named and 0 < named[0] < num_kv_indices:
            num_kv_indices = int(named[0])
        super().init(num_kv_indices, aux_index)

    def send(self, kv_indices: Any, **named: Any) -> None:
        expected = self._room.expected
        super().send(kv_indices if expected is None else kv_indices[:expected], **named)


@mutant("handle_of_one_thread", "KV-THR-2")
class HandleOfOneThread(CommonKVSender):
    """A handle may be used from any thread, one at a time: here only from the one that made it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.thread = get_ident()

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        if get_ident() != self.thread:
            raise RuntimeError("this sender belongs to another thread")
        super().init(num_kv_indices, aux_index)


@mutant("send_waits", "KV-POLL-1")
class SendWaits(Sending):
    """``send`` never blocks: here it waits until its pages have been read."""

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        super().hand_over(kv, states, layers, ready)
        room = self._room
        while ready is None and room.poll is not KVPoll.Bootstrapping and room.unfinished and not room.ended:
            sleep(0.001)

"""What a room's history is made of: moments, as plain tuples, because every room of a serving engine writes some."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

Moment: TypeAlias = tuple[Any, ...]
"""``(time_s, what, *values)``: monotonic seconds, one of ``MOMENTS``, and the values that this one names."""

OPENED = "opened"
PHASE = "phase"
FAILED = "failed"
RELEASED = "released"
SKIPPED = "skipped"
PAGES = "pages"
INIT = "init"
ANNOUNCED = "announced"
METADATA = "metadata"
HANDED = "handed"
POSTED = "posted"
LANDED = "landed"
CHUNK_FAILED = "chunk_failed"
CHUNK_QUIET = "chunk_quiet"
VERDICT = "verdict"
LINKED = "linked"
TROUBLE = "trouble"
NAMED = "named"
BOUND = "bound"
DONE = "done"
VERIFIED = "verified"
PROOF = "proof"

MOMENTS: dict[str, tuple[str, ...]] = {
    # both sides
    OPENED: (),
    PHASE: ("phase",),  # the life cycle's next phase; the failed one is FAILED
    FAILED: ("stage", "code", "side", "message"),
    RELEASED: (),  # the pages may be used again
    SKIPPED: ("moments",),  # so many stood here, and were dropped to keep the history short
    # prefill
    PAGES: ("pages",),  # init(): what the engine will send
    ANNOUNCED: ("peer", "peer_life"),  # decode queues for the room
    METADATA: ("peer", "peer_life", "pages", "prefix"),  # decode has named its pages
    HANDED: ("chunk", "pages"),  # send()
    POSTED: ("chunk", "peer"),  # handed to the transport
    LANDED: ("chunk", "peer", "bytes", "started_s", "stopped_s", "source"),  # the span on the wire, and who measured it
    CHUNK_FAILED: ("chunk", "peer", "quiescent"),
    CHUNK_QUIET: ("chunk", "peer"),  # nothing of a failed or abandoned chunk can move any more
    VERDICT: ("peer", "peer_life", "good"),  # what decode said of the room in the end
    # decode
    INIT: ("prefill_dp_rank",),
    LINKED: ("peer",),  # this prefill rank has to send to the room
    TROUBLE: ("message",),  # why no prefill rank can be found
    NAMED: ("pages", "prefix"),  # send_metadata()
    BOUND: ("peer", "peer_life"),  # prefill took the pages
    DONE: ("peer", "bytes", "chunks", "wire_s"),  # prefill says that all has landed
    VERIFIED: ("peer", "good"),  # the digests
    PROOF: ("peer", "proof"),  # why this peer can't write the room's pages any more
}
"""Every moment with the names of its values. ``peer``: the instance id of the other side's manager; ``peer_life``: the life
number that it gave the room. Chunks are numbered by ``send`` calls from 0.
"""


def named(moment: Moment) -> dict[str, Any]:
    """A moment's values by their names, without time and kind."""
    return dict(zip(MOMENTS.get(moment[1], ()), moment[2:], strict=False))


def timeline(moments: Iterable[Moment], start_s: float) -> list[dict[str, Any]]:
    """Moments as JSON wants them, with milliseconds since ``start_s``."""
    return [{"ms": round((each[0] - start_s) * 1e3, 3), "what": each[1], **named(each)} for each in moments]

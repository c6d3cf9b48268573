"""The life cycle of a room, as two tables: one for each side.

A room is in a *phase*; what happens to it are *events*; the table says which phase an event leads to and which
*actions* go with it. An event that the table does not have for a phase changes nothing and is counted: late, doubled
and impossible news all end there. SUCCESS and FAILED have no way out, so the first of them wins and each is reached
once; `concluded` is therefore reported once.

Phases carry more than ``KVPoll`` says: CONFIRMING (all bytes landed, decode has not yet agreed) and VERIFYING (decode
hashes) are Transferring to the engine; OFFERED (pages named, prefill has not yet taken them) is WaitingForInput.

Whether a room's pages may be reused is *not* a phase. A room ends at once, and its writes drain later: see
``RoomLink``.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from kv_core.contract.enums import FailureStage, KVPoll


class Phase(Enum):
    """Where a room is. ``word``: its value, for histories: an attribute costs a tenth of what ``value`` does."""

    def __init__(self, word: str) -> None:
        self.word = word

    OPEN = "open"
    READY = "ready"
    OFFERED = "offered"
    MOVING = "moving"
    CONFIRMING = "confirming"
    VERIFYING = "verifying"
    SUCCESS = "success"
    FAILED = "failed"


class Event(Enum):
    """What happened to a room."""

    PEERS_KNOWN = "peers known"  # prefill: decode named its pages; decode: all handshakes passed
    OFFERED = "pages offered"  # decode: the engine named its pages
    BOUND = "bound"  # decode: every source took the pages
    STARTED = "started"  # prefill: the first chunk is being posted
    LANDED = "landed"  # prefill: everything announced has landed
    ARRIVED = "arrived"  # decode: every source said done
    AGREED = "agreed"  # prefill: every destination concluded well; decode: the digests agree
    FAILED = "failed"  # the first root cause


class Action(Enum):
    """What goes with a change of phase; the machines have a method for each."""

    OPEN_QUEUE = "tell prefill that this room queues here"
    OFFER = "send the page numbers to every source"
    BIND = "tell decode that its pages are taken, and start what waits"
    DONE = "tell decode that everything landed"
    VERIFY = "compare digests"
    CONCLUDE = "tell prefill the verdict"
    REPORT = "freeze the metric and tell observers"
    DRAIN = "tell every peer, submit nothing more, wait until quiescent"


Table: TypeAlias = dict[tuple[Phase, Event], tuple[Phase, tuple[Action, ...]]]

_FAIL = (Phase.FAILED, (Action.REPORT, Action.DRAIN))

PREFILL: Table = {
    (Phase.OPEN, Event.PEERS_KNOWN): (Phase.READY, (Action.BIND,)),
    (Phase.READY, Event.STARTED): (Phase.MOVING, ()),
    (Phase.MOVING, Event.LANDED): (Phase.CONFIRMING, (Action.DONE,)),
    (Phase.CONFIRMING, Event.AGREED): (Phase.SUCCESS, (Action.REPORT,)),
    **{(phase, Event.FAILED): _FAIL for phase in (Phase.OPEN, Phase.READY, Phase.MOVING, Phase.CONFIRMING)},
}

DECODE: Table = {
    (Phase.OPEN, Event.PEERS_KNOWN): (Phase.READY, (Action.OPEN_QUEUE,)),
    (Phase.READY, Event.OFFERED): (Phase.OFFERED, (Action.OFFER,)),
    (Phase.OFFERED, Event.BOUND): (Phase.MOVING, ()),
    (Phase.MOVING, Event.ARRIVED): (Phase.VERIFYING, (Action.VERIFY,)),
    (Phase.VERIFYING, Event.AGREED): (Phase.SUCCESS, (Action.REPORT, Action.CONCLUDE)),
    **{
        (phase, Event.FAILED): _FAIL
        for phase in (Phase.OPEN, Phase.READY, Phase.OFFERED, Phase.MOVING, Phase.VERIFYING)
    },
}

POLL = {
    Phase.OPEN: KVPoll.Bootstrapping,
    Phase.READY: KVPoll.WaitingForInput,
    Phase.OFFERED: KVPoll.WaitingForInput,
    Phase.MOVING: KVPoll.Transferring,
    Phase.CONFIRMING: KVPoll.Transferring,
    Phase.VERIFYING: KVPoll.Transferring,
    Phase.SUCCESS: KVPoll.Success,
    Phase.FAILED: KVPoll.Failed,
}
"""What the engine sees of a phase."""

STAGE = {
    Phase.OPEN: FailureStage.BOOTSTRAP,
    Phase.READY: FailureStage.QUEUED,
    Phase.OFFERED: FailureStage.QUEUED,
    Phase.MOVING: FailureStage.TRANSFER,
    Phase.CONFIRMING: FailureStage.TRANSFER,
    Phase.VERIFYING: FailureStage.TRANSFER,
}
"""The stage of a failure that comes in a phase, where its cause does not say."""
TERMINAL = frozenset({Phase.SUCCESS, Phase.FAILED})


def diagram(table: Table, title: str) -> str:
    """The table as a Mermaid state diagram; the docs are made from it."""
    lines = ["stateDiagram-v2", f"    %% {title}", f"    [*] --> {Phase.OPEN.value}"]
    lines += [f"    {a.value} --> {b.value}: {event.value}" for (a, event), (b, _) in table.items()]
    lines += [f"    {phase.value} --> [*]" for phase in (Phase.SUCCESS, Phase.FAILED)]
    return "\n".join(lines) + "\n"

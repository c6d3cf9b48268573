"""What a seed stands for: who lives, what the engines ask for, and what goes wrong. Plain data, drawn once."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from core.tests.simulation.memory import LAYERS
from kv_core.contract.config import MAX_ROOM, TransferConfig
from kv_core.contract.enums import DigestMode, Direction, KVPoll

BASE = {
    "bootstrap_timeout_s": 6.0, "waiting_timeout_s": 5.0, "transferring_timeout_s": 4.0, "draining_timeout_s": 1.0,
    "lease_s": 3.0, "probe_interval_s": 0.7, "suspect_after": 2, "dead_after": 5,
}  # fmt: skip
HISTORIES = {DigestMode.OFF: 64, DigestMode.SAMPLED: 8, DigestMode.ALL: 16}
"""How long the rooms' histories are, by what else is tried."""
SETTINGS = {
    digest: TransferConfig(**BASE, digest=digest, flight_recorder=size)  # type: ignore[arg-type]
    for digest, size in HISTORIES.items()
}
TIGHT = TransferConfig(**BASE, max_inbox=3, max_tombstones=2, max_rooms=6, flight_recorder=0)  # type: ignore[arg-type]

BOUND_S = 6.0 + 5.0 + 2 * 4.0 + 3.0 + 8 * 0.7 + 3.0 + 4 * 1.0
"""From the last thing that engines and faults do until every room has ended."""

DECODE_CAUSES = (
    "abort_decode", "abort_decode", "abort_decode", "clear_decode", "decode_never_opens", "never_offers", "out_of_range",
    "init_twice_decode", "offer_before_init", "offer_twice", "bad_dp",
)  # fmt: skip
PREFILL_CAUSES = (
    "abort_prefill", "abort_prefill", "abort_prefill", "clear_prefill", "prefill_never_opens", "never_sends", "never_inits",
    "stops_midway", "wrong_count", "send_before_init", "init_twice_prefill", "send_beyond", "bad_states",
    "negative_count",
)  # fmt: skip
TRANSFER_CAUSES = ("fail_quiet", "fail_loud", "pending", "corrupt", "never_ready")
TIMED = ("abort_decode", "clear_decode", "abort_prefill", "clear_prefill")


class Cause(NamedTuple):
    """Something that an engine or the data plane does wrong in a request. ``rank``: which rank of that side."""

    kind: str
    rank: int
    poll: KVPoll | None  # when the room shows this state, plus delay; None: delay after opening
    delay: float


class Send(NamedTuple):
    """One chunk."""

    pages: int
    layers: range | None


@dataclass
class Request:
    """One request, as a router hands it to both sides."""

    uid: int
    number: int
    instance: int
    group: int
    pages: int
    prefix: int
    states: int
    aux: bool
    sends: list[Send]
    prefill_open: float
    decode_open: float
    init_early: bool
    offer_early: bool
    offer_delay: float
    send_delay: float
    send_gap: float
    clear_delay: float
    causes: list[Cause] = field(default_factory=list)
    oddities: list[tuple[str, str, float]] = field(
        default_factory=list
    )  # side, what, delay after opening: no harm done
    tainted: str = ""  # why the request may end in any way
    follower: Request | None = None  # the same number again
    polite: bool = True  # the follower waits until both sides have cleared


class Fault(NamedTuple):
    """Something that happens to a process, a connection or a server. Targets are indices of slots."""

    when: float
    kind: str
    target: int
    other: int
    duration: float


class Net(NamedTuple):
    """How packets fare."""

    name: str
    loss: float
    double: float
    slow: float  # share of packets that take up to ``spike``
    spike: float


NETS = {
    "clean": Net("clean", 0, 0, 0, 0),
    "mild": Net("mild", 0.02, 0.05, 0.1, 0.3),
    "heavy": Net("heavy", 0.2, 0.2, 0.3, 2.0),
}
FAULTS = (
    "kill_prefill", "kill_prefill", "kill_decode", "kill_decode", "pause_prefill", "pause_prefill", "pause_decode", "pause_decode",
    "partition", "partition", "deaf_prefill", "deaf_decode", "flap", "flap", "close_prefill", "close_decode", "stall", "storm",
    "unreachable", "unreachable", "giveup_prefill", "giveup_prefill", "giveup_decode",
)  # fmt: skip
BOOTSTRAP = ("absent", "black", "slow", "foreign", "stale", "restart")


@dataclass
class Scenario:
    """All that one schedule begins with."""

    profile: str
    settings: TransferConfig
    net: Net
    instances: int
    ranks: int
    groups: int
    destinations: int
    codec: bool
    can_fence: bool
    fence_works: bool
    death_provable: bool
    cancel: bool
    software: bool  # a stopped process's transfers stop with it
    aux_inline: bool  # auxiliary rows travel over the control channel
    rests_long: bool
    requests: list[Request]
    faults: list[Fault]
    stranger: int | None  # this decode process is configured differently
    direction: Direction = Direction.WRITE


def draw(rng: random.Random) -> Scenario:
    """A scenario."""
    profile = rng.choices(
        ("calm", "lossy", "data", "process", "bootstrap", "everything"), (18, 18, 16, 28, 8, 12)
    )[0]  # fmt: skip
    shape = rng.choices(((1, 1, 1, 1), (2, 1, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2), (1, 2, 1, 1), (2, 1, 2, 1), (1, 1, 3, 1), (3, 1, 1, 1)), (44, 10, 16, 6, 8, 8, 4, 4))[0]  # fmt: skip
    instances, ranks, groups, destinations = shape
    wild = profile == "everything"
    net = NETS["clean"]
    if profile in {"lossy", "process", "everything"}:
        net = rng.choice((NETS["clean"], NETS["mild"], NETS["heavy"])) if profile != "lossy" else rng.choice((NETS["mild"], NETS["mild"], NETS["heavy"]))  # fmt: skip
    digest = rng.choice((DigestMode.OFF, DigestMode.ALL))
    settings = SETTINGS[digest]
    if rng.random() < 0.03:
        settings = TIGHT
    requests = _requests(rng, profile, shape, settings)
    faults = []
    if profile in {"process", "everything"}:
        faults += _faults(rng, instances * ranks, groups * destinations)
    if profile == "bootstrap" or (wild and rng.random() < 0.4):
        for _ in range(rng.choice((1, 1, 2))):
            when = rng.choice((0.0, rng.uniform(0, 5)))
            duration = rng.choice((rng.uniform(0.1, 3), rng.uniform(2, 12)))
            faults.append(Fault(when, rng.choice(BOOTSTRAP), rng.randrange(instances), 0, duration))
    can_fence = rng.random() < 0.4
    return Scenario(
        profile, settings, net, instances, ranks, groups, destinations, rng.random() < 0.25, can_fence,
        rng.random() < 0.7, rng.random() < 0.8, rng.random() < 0.4, rng.random() < 0.5, rng.random() < 0.3, rng.random() < 0.05,
        requests, faults, rng.randrange(groups * destinations) if rng.random() < 0.04 else None,
    )  # fmt: skip


def _faults(rng: random.Random, prefills: int, decodes: int) -> list[Fault]:
    faults = []
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        kind = rng.choice(FAULTS)
        when = rng.uniform(0.1, 7)
        duration = rng.choice((rng.uniform(0.05, 1), rng.uniform(1, 4), rng.uniform(3, 12), 60.0))
        on_prefill = kind.endswith("prefill") or kind == "stall"
        on_any = kind in {"flap", "storm"} and rng.random() < 0.5
        target = rng.randrange(prefills) if on_prefill or on_any else prefills + rng.randrange(decodes)
        other = rng.randrange(prefills) if target >= prefills else prefills + rng.randrange(decodes)
        faults.append(Fault(when, kind, target, other, duration))
    return faults


def _requests(
    rng: random.Random, profile: str, shape: tuple[int, int, int, int], settings: TransferConfig
) -> list[Request]:
    instances, ranks, groups, destinations = shape
    numbers: set[int] = set()
    requests: list[Request] = []
    for uid in range(1, rng.choice((2, 3, 4, 5, 6, 8, 10)) + 1):
        number = rng.choice((rng.randrange(100), rng.randrange(MAX_ROOM), MAX_ROOM, 0))
        while number in numbers:
            number = rng.randrange(MAX_ROOM)
        numbers.add(number)
        request = _request(rng, uid, number, rng.randrange(instances), rng.randrange(groups))
        share = 0.9 if profile == "data" else 0.45
        if rng.random() < share:
            request.causes = _causes(rng, profile, ranks, destinations, settings)
        if rng.random() < 0.12:
            what = rng.choice(("duplicate", "duplicate", "bad number"))
            request.oddities.append((rng.choice(("prefill", "decode")), what, rng.uniform(0, 2)))
        if rng.random() < 0.3:
            follower = _request(rng, 100 + uid, number, request.instance, request.group)
            if rng.random() < 0.3:
                follower.causes = _causes(rng, profile, ranks, destinations, settings)
            request.follower = follower
            request.polite = rng.random() < 0.5
            if not request.polite:
                request.tainted = follower.tainted = "the number was reused before both sides had cleared it"
        requests.append(request)
    if groups > 1 and len(requests) > 1 and rng.random() < 0.15:
        first, second = requests[0], requests[1]
        second.number, second.instance, second.group = first.number, first.instance, (first.group + 1) % groups
        first.tainted = second.tainted = "two decode ranks use one number"
        for each in (first, second):
            if each.follower is not None:
                each.follower.number, each.follower.instance = each.number, each.instance
                each.follower.group = each.group
                each.follower.tainted = first.tainted
    return requests


def _request(rng: random.Random, uid: int, number: int, instance: int, group: int) -> Request:
    pages = rng.choice((0, 1, 1, 2, 3, 4, 6))
    early, late = rng.uniform(0, 4), rng.choice((rng.uniform(0, 0.05), rng.uniform(0, 0.5), rng.uniform(0, 3)))
    prefill_first = rng.random() < 0.5
    offer_delay = rng.choice((0.0, rng.uniform(0, 0.3), rng.uniform(0, 1), rng.uniform(2, 5)))
    return Request(
        uid, number, instance, group, pages, rng.choice((0, 0, 2)), rng.choice((0, 0, 0, 1, 2)), rng.random() < 0.6,
        _sends(rng, pages), early if prefill_first else early + late, early + late if prefill_first else early,
        rng.random() < 0.5, rng.random() < 0.4, offer_delay, rng.choice((0.0, rng.uniform(0, 0.2), rng.uniform(0, 1.5))),
        rng.choice((0.0, rng.uniform(0, 0.1), rng.uniform(0, 1))), rng.choice((0.0, rng.uniform(0, 0.1), rng.uniform(0, 2))),
    )  # fmt: skip


def _sends(rng: random.Random, pages: int) -> list[Send]:
    """1 to 5 chunks that cover all pages on all layers."""
    if pages == 0:
        return [Send(0, None)]
    cuts = sorted({rng.randrange(1, pages + 1) for _ in range(rng.choice((0, 0, 1, 2)))} - {pages})
    counts = [b - a for a, b in zip([0, *cuts], [*cuts, pages], strict=True)]
    if rng.random() < 0.7:
        return [Send(count, None) for count in counts]
    split = rng.randrange(1, len(LAYERS))
    halves = [range(LAYERS[0], split), range(split, LAYERS[-1] + 1)]
    if rng.random() < 0.5:  # layer by layer within each chunk
        return [Send(count, half) for count in counts for half in halves][:5] if len(counts) < 3 else [Send(pages, h) for h in halves]  # fmt: skip
    return [Send(pages, half) for half in halves]


def _causes(
    rng: random.Random, profile: str, ranks: int, destinations: int, settings: TransferConfig
) -> list[Cause]:  # fmt: skip
    causes = []
    for _ in range(1 if rng.random() < 0.8 else 2):
        kinds: tuple[str, ...] = DECODE_CAUSES + PREFILL_CAUSES + 3 * TRANSFER_CAUSES
        if profile == "data" and rng.random() < 0.8:
            kinds = TRANSFER_CAUSES
        kind = rng.choice(kinds)
        if kind == "corrupt" and settings.digest is DigestMode.OFF:
            kind = "fail_loud"
        index = rng.randrange(destinations if kind in DECODE_CAUSES else ranks)
        poll = rng.choice((None, None, KVPoll.WaitingForInput, KVPoll.Transferring, KVPoll.Success))
        delay = rng.choice((0.0, rng.uniform(0, 0.01), rng.uniform(0, 0.3), rng.uniform(0, 3)))
        causes.append(Cause(kind, index, poll, delay))
    return causes

"""For each alert rule: the fault that it names, made with real processes, and what else such a fault may rightly set off.

A fault first starts healthy ranks (``begin``); then Prometheus has scraped them; then it strikes (``strike``), and goes on as
often as the scene is pumped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import zmq

from tests.support.observed_scene import Scene
from tests.support.orders import Order

NEVER_S = 600.0
SLOW_S = 62.0
"""Longer than the bound of KvCoreSlowBootstrap, which is no window and is not scaled."""
TCP = "KvCoreTransportIsTcp"
"""Rightly fires for the embedded backend whatever happens."""
FAILING = "KvCoreRoomsFailing"
MANY = 130_000
"""More events than may wait for observers (``runtime.observing.MAX_WAITING``)."""


@dataclass(frozen=True)
class Fault:
    """One rule's fault. ``what``: a sentence for the report. ``also``: other alerts that it may set off."""

    alert: str
    what: str
    begin: Callable[[Scene], None]
    strike: Callable[[Scene], None]
    also: frozenset[str] = field(default_factory=frozenset)


def _ranks(**more: Any) -> Callable[[Scene], None]:
    return lambda scene: scene.start(**more)


def _script(*rules: Mapping[str, Any], **config: Any) -> Callable[[Scene], None]:
    """Prefill's transport has this fault script."""
    return _ranks(prefill={"options": {"faults": list(rules), "seed": 7}}, config=config)


def _traffic(**order: Any) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        scene.begin_traffic(**order)

    return strike


def _one_room(scene: Scene) -> None:
    scene.begin_traffic()
    scene.pump_until(lambda: scene.traffic and scene.traffic.finished, "a first room")


# -- strikes -----------------------------------------------------------------------------------------------------------


def _never_claimed(scene: Scene) -> None:
    """Prefill gets requests that decode never hears of, beside good ones."""
    scene.begin_traffic()
    numbers = iter(range(1_000_000, 2_000_000))
    due = [0.0]

    def lose_one() -> None:
        if monotonic() >= due[0]:
            due[0] = monotonic() + 0.5
            scene.prefill.open([Order(next(numbers), scene.addr)])

    scene.steps.append(lose_one)


def _late_decode(scene: Scene) -> None:
    """Each room is opened by decode only so long after prefill has opened it."""
    waiting: list[tuple[float, Order]] = []
    numbers = iter(range(1, 1_000_000))
    due = [0.0]

    def step() -> None:
        now = monotonic()
        if now >= due[0]:
            due[0] = now + 0.5
            order = Order(next(numbers), scene.addr)
            scene.prefill.open([order])
            waiting.append((now + SLOW_S, order))
        while waiting and waiting[0][0] <= now:
            scene.decode.open([waiting.pop(0)[1]])

    scene.steps.append(step)


def _kill_decode(scene: Scene) -> None:
    _one_room(scene)
    assert scene.traffic is not None, "begun above"
    scene.traffic.paused = True
    scene.decode.kill()


def _flap(scene: Scene) -> None:
    """Decode stands still until prefill suspects it, and comes back, again and again."""
    _one_room(scene)
    assert scene.traffic is not None, "begun above"
    scene.traffic.paused = True
    for _ in range(6):
        before = scene.metric("prefill", "kv_core_peers_suspected_total")
        scene.decode.freeze()
        scene.pump_until(lambda: scene.metric("prefill", "kv_core_peers_suspected_total") > before, "suspected")  # noqa: B023
        back = scene.metric("prefill", "kv_core_peers_recovered_total")
        scene.decode.thaw()
        scene.pump_until(lambda: scene.metric("prefill", "kv_core_peers_recovered_total") > back, "recovered")  # noqa: B023


def _end_control_thread(scene: Scene) -> None:
    _one_room(scene)
    assert scene.traffic is not None, "begun above"
    scene.traffic.paused = True
    scene.prefill.call("end_thread", name="-control")


def _stranger(scene: Scene) -> None:
    """Somebody speaks ZMTP to prefill's control port, and nothing that anybody there understands."""
    scene.begin_traffic()
    dealer = scene.stack.enter_context(zmq.Context()).socket(zmq.DEALER)
    scene.stack.callback(dealer.close, 0)
    dealer.connect(scene.prefill.endpoint)
    due = [0.0]

    def speak() -> None:
        if monotonic() >= due[0]:
            due[0] = monotonic() + 0.5
            dealer.send(b"GET /health HTTP/1.1")

    scene.steps.append(speak)


def _lose_the_book(scene: Scene) -> None:
    scene.begin_traffic()
    scene.decode.call("lose_the_book")


def _too_many_events(scene: Scene) -> None:
    scene.decode.call("refuse_rooms", count=MANY, limit_s=300.0)


DIGESTS = {"digest": "all"}
FAULTS = (
    Fault(
        FAILING, "max_rooms is 2, and 8 rooms at a time are asked for",
        _ranks(decode={"max_rooms": 2}, config={"bootstrap_timeout_s": 0.5}), _traffic(concurrency=8),
        frozenset({"KvCoreQueueTimeouts"}),
    ),
    Fault(
        "KvCoreTransportErrors", "the fabric reports an error for every tenth submission",
        _script({"kind": "late_write", "every": 10, "seconds": 0.02}), _traffic(), frozenset({FAILING}),
    ),
    Fault(
        "KvCoreWrongBytes", "one byte of every tenth submission arrives flipped; digests are on",
        _script({"kind": "corrupt", "every": 10}, **DIGESTS), _traffic(), frozenset({FAILING}),
    ),
    Fault(
        "KvCoreQueueTimeouts", "prefill gets requests of which decode never hears",
        _ranks(config={"bootstrap_timeout_s": 2.0}), _never_claimed, frozenset({FAILING}),
    ),
    Fault(
        "KvCoreTransferTimeouts", "every tenth submission gets lost without a word",
        _script({"kind": "drop", "every": 10}, transferring_timeout_s=2.0), _traffic(), frozenset({FAILING}),
    ),
    Fault(
        "KvCoreTransferQueueStuck", "after 20 submissions nothing completes any more, and the window of bytes is full",
        _script(*({"kind": "hold", "nth": nth, "seconds": NEVER_S} for nth in range(20, 60)), window_bytes=2_048),
        _traffic(concurrency=24),
    ),
    Fault(
        "KvCoreSlowBootstrap", f"decode opens each room {SLOW_S:g} s after prefill",
        _ranks(), _late_decode,
    ),
    Fault("KvCorePeerLost", "decode's process is killed (SIGKILL)", _ranks(), _kill_decode, frozenset({FAILING})),
    Fault("KvCorePeersFlapping", "decode's process is stopped and continued, six times", _ranks(), _flap, frozenset({FAILING})),
    Fault(
        "KvCoreIncompatiblePeer", "decode has pages of 32 tokens, prefill of 16",
        _ranks(decode_args={"page_size": 32}), _traffic(), frozenset({FAILING, "KvCoreMessagesDropped"}),
    ),
    Fault(
        "KvCorePagesQuarantined", "the fabric reports an error and says that it may still write, for minutes",
        _script({"kind": "late_write", "nth": 20, "seconds": NEVER_S}), _traffic(),
        frozenset({"KvCoreTransportErrors"}),
    ),
    Fault(
        "KvCoreThreadEnded", "prefill's control thread ends by an exception that nobody survives",
        _ranks(), _end_control_thread, frozenset({"KvCorePeerLost", FAILING}),
    ),
    Fault(TCP, "the embedded backend moves its bytes over TCP", _ranks(), _traffic()),
    Fault("KvCoreMessagesDropped", "a stranger sends prefill what is no message", _ranks(), _stranger),
    Fault(
        "KvCoreMetricsIncomplete", f"an observer blocks while {MANY:,} rooms are refused",
        _ranks(decode_broken="slow"), _too_many_events, frozenset({FAILING}),
    ),
    Fault(
        "KvCoreSnapshotErrors", "a backend's own manager can't give its snapshot any more", _ranks(decode_broken="blind"),
        _lose_the_book,
    ),
    Fault(
        "KvCoreImpossibleMeasurements", "a backend's own manager tells observers that rooms took -1 s",
        _ranks(prefill_broken="lying"), _traffic(),
    ),
)  # fmt: skip


def healthy(scene: Scene) -> None:
    """Good traffic in which some rooms are given up: nothing is wrong."""
    scene.begin_traffic()
    numbers = iter(range(1_000_000, 2_000_000))
    due = [0.0]

    def give_one_up() -> None:
        if monotonic() >= due[0]:
            due[0] = monotonic() + 0.5
            number = next(numbers)
            scene.prefill.open([Order(number, scene.addr, act="abort:WaitingForInput")])
            scene.decode.open([Order(number, scene.addr)])

    scene.steps.append(give_one_up)

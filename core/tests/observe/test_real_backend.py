"""Real managers over the embedded backend: bytes exact, times inside what a clock outside saw, the engine undisturbed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from core.tests.observe.support import Samples, scrape
from kv_core import (
    FAKE_BOOTSTRAP_HOST,
    BootstrapServer,
    Buffer,
    KVArgs,
    KVPoll,
    Pool,
    PrometheusMetrics,
    Role,
    RoomEvent,
    RoomEventKind,
    SGLangMetrics,
    TransferConfig,
    load_backend,
)

pytest.importorskip("kv_fake", reason="the embedded backend is not installed")

PAGES, LAYERS, PAGE_BYTES = 64, 2, 4096
LIMIT_S = 60.0


class Recorder:
    """Keeps events, and on which thread they came."""

    def __init__(self) -> None:
        self.events: list[RoomEvent] = []
        self.threads: set[int] = set()

    def kv_room_event(self, event: RoomEvent) -> None:
        self.threads.add(threading.get_ident())
        self.events.append(event)


class Couple:
    """Prefill and decode in this process, observed, in one registry."""

    def __init__(self, stack: ExitStack, *more: Any) -> None:
        backend = load_backend("fake")
        self.registry = CollectorRegistry()
        metrics = stack.enter_context(PrometheusMetrics(self.registry))
        server = stack.enter_context(BootstrapServer(host="127.0.0.1", port=0))
        self.memory = {role: [np.zeros((PAGES, PAGE_BYTES), np.uint8) for _ in range(LAYERS)] for role in Role}
        for array in self.memory[Role.PREFILL]:
            array[:] = np.random.default_rng(5).integers(1, 255, array.shape, np.uint8)
        self.recorder = {role: Recorder() for role in Role}
        self.addr = server.address
        made = {}
        for role in Role:
            buffers = tuple(Buffer(a.ctypes.data, PAGE_BYTES, PAGES, n) for n, a in enumerate(self.memory[role]))
            args = KVArgs(
                kv=Pool("kv", buffers), page_size=16, dtype="bfloat16", model="m", num_kv_heads=2, head_dim=64
            )
            config = TransferConfig(bootstrap_addr=self.addr if role is Role.PREFILL else None)
            observer = metrics.observer(backend.info, role)
            observers = [observer, self.recorder[role], *more]
            made[role] = stack.enter_context(backend.create_manager(role, args, config, observers=observers))
            stack.enter_context(observer.watch(made[role].snapshot, made[role].health))
        self.prefill, self.decode = made[Role.PREFILL], made[Role.DECODE]

    def open(self, room: int, pages: int, addr: str = "") -> tuple[Any, Any]:
        receiver = self.decode.create_receiver(addr or self.addr, room)
        receiver.init()
        sender = self.prefill.create_sender(addr or self.addr, room)
        sender.init(pages)
        receiver.send_metadata(range(pages))
        return sender, receiver

    def released(self, rooms: int) -> None:
        """Wait until both sides' observers know that these rooms' pages are safe."""
        for recorder in self.recorder.values():
            until(lambda: sum(e.kind is RoomEventKind.RELEASED for e in recorder.events) >= rooms)  # noqa: B023


def until(condition: Any) -> None:
    deadline = monotonic() + LIMIT_S
    while not condition():
        assert monotonic() < deadline, f"not within {LIMIT_S} s"
        sleep(0.001)


@pytest.fixture
def couple() -> Iterator[Couple]:
    with ExitStack() as stack:
        yield Couple(stack)


def run(couple: Couple, room: int, chunks: list[range]) -> float:
    """One room, chunk by chunk; the wall time around it."""
    began = monotonic()
    sender, receiver = couple.open(room, sum(map(len, chunks)))
    for chunk in chunks:
        sender.send(chunk)
    until(lambda: sender.poll().terminal and receiver.poll().terminal)
    wall = monotonic() - began
    assert (sender.poll(), receiver.poll()) == (KVPoll.Success, KVPoll.Success), (sender.failure(), receiver.failure())
    sender.clear()
    receiver.clear()
    return wall


def test_bytes_are_exact_and_times_lie_inside_the_wall_time(couple):
    walls = [run(couple, 1, [range(20)]), run(couple, 2, [range(8), range(8, 11), range(11, 30)])]
    couple.released(2)
    pages = 20 + 30
    found = scrape(couple.registry)
    for array, other in zip(couple.memory[Role.PREFILL], couple.memory[Role.DECODE], strict=True):
        assert (array[:30] == other[:30]).all()
    for role in ("prefill", "decode"):
        labels = {"role": role, "backend": "fake"}
        assert found.value("kv_core_transferred_bytes_total", **labels) == pages * LAYERS * PAGE_BYTES
        assert found.value("kv_core_room_bytes_sum", **labels) == pages * LAYERS * PAGE_BYTES
        assert found.value("kv_core_room_chunks_sum", **labels) == 4
        assert found.value("kv_core_rooms_concluded_total", outcome="success", **labels) == 2
        assert found.value("kv_core_rooms_concluded_total", **labels) == 2
        assert found.value("kv_core_rooms_opened_total", **labels) == 2
        stages = [
            found.value(f"kv_core_{stage}_seconds_sum", **labels) for stage in ("bootstrap", "queue_wait", "wire")
        ]
        total = found.value("kv_core_room_seconds_sum", **labels)
        assert all(0 <= stage <= total <= sum(walls) for stage in stages)
        assert stages[-1] > 0
        if role == "prefill":  # decode hears that its pages were taken when the first bytes may be under way already
            assert sum(stages) <= total
        assert found.value("kv_core_drain_seconds_count", **labels) == 2
        assert found.value("kv_core_peers", **labels) == 1
        assert found.value("kv_core_peers_joined_total", **labels) == 1
        assert found.value("kv_core_dead_threads", **labels) == 0
        assert found.value("kv_core_messages_dropped_total", kind="other", **labels) == 0
    assert found.value("kv_core_chunks_posted_total", role="prefill") == 4
    in_use = [sample.labels["transport"] for sample in found.of("kv_core_backend_info") if sample.value]
    assert len(in_use) == 2
    assert "none" not in in_use


def test_warm_up_rooms_leave_no_trace(couple):
    sender, receiver = couple.open(7, 2, f"{FAKE_BOOTSTRAP_HOST}:8998")
    sender.send([0, 1])
    until(lambda: sender.poll() is receiver.poll() is KVPoll.Success)
    run(couple, 8, [range(2)])
    couple.released(1)
    assert scrape(couple.registry).value("kv_core_rooms_opened_total") == 2, "room 8 on both sides"


def test_an_aborted_room_is_aborted_and_no_success(couple):
    sender, receiver = couple.open(1, 4)
    until(lambda: sender.poll() is KVPoll.WaitingForInput)
    receiver.abort("enough")
    until(lambda: sender.poll() is receiver.poll() is KVPoll.Failed)
    couple.released(1)
    found = scrape(couple.registry)
    assert found.value("kv_core_rooms_concluded_total", outcome="aborted") == 2
    assert found.value("kv_core_rooms_concluded_total") == 2
    assert sum(s.value for s in found.all if s.name.endswith("_count") and "drain" not in s.name) == 0


def test_the_engines_thread_does_none_of_it(couple):
    """An observer that stands still, and a scrape that takes for ever, hold up no call of the engine."""
    gate, entered = threading.Event(), threading.Event()

    class Slow:
        def kv_room_event(self, event: RoomEvent) -> None:
            entered.set()
            gate.wait(LIMIT_S)

    with ExitStack() as stack:
        slow = Couple(stack, Slow())
        stack.callback(gate.set)
        run(slow, 1, [range(4)])
        assert entered.is_set()
        waiting = slow.prefill.health()["observers"]["waiting"]
        assert waiting > 0, "the events wait; the room did not"
        gate.set()
    run(couple, 1, [range(4)])
    couple.released(1)
    me = threading.get_ident()
    assert all(recorder.threads and me not in recorder.threads for recorder in couple.recorder.values())


def test_scrapes_while_rooms_run(couple):
    """A snapshot is taken under the manager's lock: scraping all the time makes no room fail and sees only sums that fit."""
    stop, seen, errors = threading.Event(), [], []

    def scrape_on() -> None:
        while not stop.wait(0.002):
            try:
                seen.append(scrape(couple.registry))
            except Exception as error:  # noqa: BLE001
                errors.append(error)

    thread = threading.Thread(target=scrape_on)
    thread.start()
    try:
        for room in range(1, 16):
            run(couple, room, [range(4), range(4, 8)])
    finally:
        stop.set()
        thread.join(LIMIT_S)
    assert errors == []
    totals = [opened(found) for found in seen]
    assert totals == sorted(totals)
    couple.released(15)
    assert opened(scrape(couple.registry)) == 30


def opened(found: Samples) -> float:
    return found.value("kv_core_rooms_opened_total")


def test_sglangs_names_beside_ours():
    with ExitStack() as stack:
        registry = CollectorRegistry()
        aliases = SGLangMetrics(Role.PREFILL, registry)
        couple = Couple(stack)
        backend = load_backend("fake")
        assert backend.info.name == "fake"
        run(couple, 1, [range(16)])
        couple.released(1)
        for event in couple.recorder[Role.PREFILL].events:
            aliases.kv_room_event(event)
        aliases.watch(couple.prefill.snapshot)
        ours, theirs = scrape(couple.registry), scrape(registry)
        assert theirs.value("sglang:kv_transfer_total_mb_sum") == 16 * LAYERS * PAGE_BYTES / 2**20
        wire = ours.value("kv_core_wire_seconds_sum", role="prefill")
        assert theirs.value("sglang:kv_transfer_latency_ms_sum") == pytest.approx(wire * 1000)
        assert theirs.value("sglang:num_prefill_inflight_queue_reqs") == 0

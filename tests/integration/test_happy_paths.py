"""Rooms that go well, both sides in one process: every form of request, and every byte compared."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import numpy as np
import pytest

from kv_core import FAKE_BOOTSTRAP_HOST, KVPoll, KVTransferMetric
from tests.support.memory import Shape
from tests.support.pair import Pair, assert_at_rest, assert_success
from tests.support.waiting import wait_until

SHAPE = Shape(pages=128, layers=4, page_bytes=192, aux_rows=8, states={"mamba": (32, 640), "window": (64, 128)})


@pytest.fixture(scope="module", params=["write", "read"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Pair(SHAPE, config={"direction": request.param}) as pair:
        yield pair


@pytest.fixture(autouse=True)
def blank(pair: Pair) -> Iterator[None]:
    """Nothing of an earlier room is left where this one's bytes are expected, and nothing is left behind."""
    pair.target.wipe(range(SHAPE.pages))
    assert pair.target.aux is not None
    pair.target.aux[:] = 0
    yield
    pair.at_rest()


def shuffled(pair: Pair, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and target pages, each in an order of its own."""
    rng = np.random.default_rng([pair.seed, seed])
    pages = pair.source.shape.pages
    return rng.permutation(pages)[:count], rng.permutation(pages)[:count]


def finish(pair: Pair, room: int, sender, receiver, target, *, first: int = 0) -> None:
    """Both succeed, every byte is there, and no page but those named was touched."""
    assert_success(sender, receiver)
    assert pair.target.holds(pair.seed, room, target, first=first)
    others = np.setdiff1d(np.arange(pair.target.shape.pages), target)
    assert pair.target.blank(others), "bytes landed beside the pages that were named"
    wait_until(lambda: sender.is_release_safe() and receiver.is_release_safe(), "release after success")
    for handle in (sender, receiver):
        handle.failure_exception()
        handle.clear()
        assert handle.poll() is KVPoll.Success, "a cleared handle keeps its state"


@pytest.mark.parametrize("first", ["sender", "receiver"])
def test_either_side_may_open_first(pair: Pair, first: str):
    room = pair.number()
    source, target = shuffled(pair, 10, room)
    if first == "sender":
        sender = pair.sender(room, source)
        receiver = pair.receiver(room)
    else:
        receiver = pair.receiver(room)
        wait_until(lambda: receiver.poll() is KVPoll.WaitingForInput, "the handshake")
        sender = pair.sender(room, source)
    receiver.send_metadata(target)
    wait_until(lambda: sender.poll() is KVPoll.WaitingForInput, "the pages' names")
    sender.send(source)
    finish(pair, room, sender, receiver, target)


@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_chunks(pair: Pair, chunks: int):
    room = pair.number()
    source, target = shuffled(pair, 23, room)
    receiver, sender = pair.receiver(room), pair.sender(room, source)
    receiver.send_metadata(target)
    for part in np.array_split(source, chunks):
        sender.send(part)
    finish(pair, room, sender, receiver, target)
    assert sender.get_transfer_metric().chunks == receiver.get_transfer_metric().chunks == chunks


def test_everything_sent_before_decode_is_there(pair: Pair):
    room = pair.number()
    source, target = shuffled(pair, 12, room)
    sender = pair.sender(room, source)
    for part in np.array_split(source, 3):
        sender.send(part)
    assert sender.poll() is KVPoll.Bootstrapping
    receiver = pair.receiver(room)
    receiver.send_metadata(target)
    finish(pair, room, sender, receiver, target)


def test_the_index_array_may_be_used_again_at_once(pair: Pair):
    room = pair.number()
    source, target = shuffled(pair, 12, room)
    receiver, sender = pair.receiver(room), pair.sender(room, source)
    named, sent = target.copy(), source.copy()
    receiver.send_metadata(named)
    sender.send(sent)
    named[:] = sent[:] = 0
    finish(pair, room, sender, receiver, target)


@pytest.mark.parametrize(
    "ranges",
    [
        [range(1), range(1, 2), range(2, 3), range(3, 4)],
        [range(2, 4), range(2)],
        [range(3), range(3, 4)],
    ],
    ids=["one by one", "last first", "uneven"],
)
def test_layer_by_layer(pair: Pair, ranges: list[range]):
    room = pair.number()
    source, target = shuffled(pair, 9, room)
    receiver, sender = pair.receiver(room), pair.sender(room, source)
    receiver.send_metadata(target)
    for layers in ranges:
        assert not sender.poll().terminal
        sender.send(source[:4], layers=layers)
        sender.send(source[4:], layers=layers)
    finish(pair, room, sender, receiver, target)


def test_states_and_auxiliary_row(pair: Pair):
    room = pair.number()
    source, target = shuffled(pair, 8, room)
    states = {"mamba": (np.array([3]), np.array([17])), "window": (np.array([5, 1, 9, 2]), np.array([40, 41, 60, 0]))}
    for pool, (there, _) in states.items():
        pair.source.write_state(pair.seed, room, pool, there)
        pair.target.states[pool][:] = 0
    receiver, sender = pair.receiver(room), pair.sender(room, source, row=2)
    receiver.send_metadata(target, aux_index=6, state_indices={pool: here for pool, (_, here) in states.items()})
    sender.send(source[:5], state_indices={"window": states["window"][0][:3]})
    sender.send(source[5:], state_indices={"window": states["window"][0][3:], "mamba": states["mamba"][0]})
    finish(pair, room, sender, receiver, target)
    assert pair.target.holds_row(pair.seed, room, 6)
    for pool, (_, here) in states.items():
        assert pair.target.holds_state(pair.seed, room, pool, here), pool
    expected = 8 * SHAPE.page_bytes * 2 * SHAPE.layers + SHAPE.aux_bytes + 640 + 4 * 128
    assert sender.get_transfer_metric().transfer_total_bytes == expected
    assert receiver.get_transfer_metric().transfer_total_bytes == expected


@pytest.mark.parametrize("row", [None, 3], ids=["without a row", "with a row"])
@pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
def test_no_pages_at_all(pair: Pair, row: int | None, early: bool):
    room = pair.number()
    sender = pair.sender(room, [], row=row)
    if early:
        sender.send([])
    receiver = pair.receiver(room)
    receiver.send_metadata([], aux_index=row, decode_prefix_len=11)
    if not early:
        wait_until(lambda: sender.poll() is KVPoll.WaitingForInput, "the pages' names")
        assert sender.decode_prefix_len == 11
        sender.send([])
    finish(pair, room, sender, receiver, [])
    if row is not None:
        assert pair.target.holds_row(pair.seed, room, row)
    assert sender.get_transfer_metric().transfer_total_bytes == (0 if row is None else SHAPE.aux_bytes)
    assert sender.get_transfer_metric().chunks == receiver.get_transfer_metric().chunks == (row is not None)


def test_decode_has_a_prefix(pair: Pair):
    room = pair.number()
    source, target = shuffled(pair, 20, room)
    prefix = 6
    receiver = pair.receiver(room)
    receiver.send_metadata(target[prefix:], decode_prefix_len=prefix)
    sender = pair.prefill.create_sender(pair.addr, room)
    assert sender.decode_prefix_len == 0 or sender.poll() is not KVPoll.Bootstrapping
    wait_until(lambda: sender.poll() is KVPoll.WaitingForInput, "the pages' names")
    assert sender.decode_prefix_len == prefix
    pair.source.write(pair.seed, room, source)
    sender.init(len(source) - sender.decode_prefix_len)
    sender.send(source[prefix:])
    finish(pair, room, sender, receiver, target[prefix:], first=prefix)


def test_rooms_at_the_edges_of_the_number_range(pair: Pair):
    for room in (0, 2**63 - 1):
        pair.good_room(room)


class Event:
    """What a CUDA event looks like to core."""

    def __init__(self) -> None:
        self.done = False
        self.asked = 0

    def query(self) -> bool:
        self.asked += 1
        return self.done


def test_the_source_is_not_read_before_it_is_ready(pair: Pair):
    room, other = pair.number(), pair.number()
    source, target = np.arange(10), np.arange(20, 30)
    receiver = pair.receiver(room)
    sender = pair.prefill.create_sender(pair.addr, room)
    sender.init(len(source))
    event = Event()
    receiver.send_metadata(target)
    sender.send(source, ready=event)
    wait_until(lambda: event.asked >= 2, "the question whether the source is ready")
    pair.good_room(other)  # which is not held up
    pair.target.wipe(range(SHAPE.pages))
    assert not sender.poll().terminal
    pair.source.write(pair.seed, room, source)  # only now
    event.done = True
    finish(pair, room, sender, receiver, target)


def test_an_event_that_raises_fails_its_room_only(pair: Pair):
    class Broken:
        def query(self) -> bool:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    room = pair.number()
    receiver, sender = pair.receiver(room), pair.sender(room, [1, 2])
    receiver.send_metadata([3, 4])
    sender.send([1, 2], ready=Broken())
    for handle in (sender, receiver):
        wait_until(lambda h=handle: h.poll().terminal, "the end of the room")  # type: ignore[misc]
        failure = handle.failure()
        assert failure is not None
        assert "illegal memory access" in failure.message
        handle.clear()
    pair.good_room()


def test_five_thousand_pages(pair: Pair):
    shape = Shape(pages=5_000, layers=2, page_bytes=64, aux_rows=0)
    with Pair(shape) as big:
        rng = np.random.default_rng(pair.seed)
        source, target = rng.permutation(5_000), rng.permutation(5_000)
        receiver, sender = big.receiver(1), big.sender(1, source)
        receiver.send_metadata(target)
        sender.send(source)
        finish(big, 1, sender, receiver, target)
        assert sender.get_transfer_metric().transfer_total_bytes == 5_000 * 64 * 4


def test_many_rooms_at_once(pair: Pair):
    rooms = [pair.number() for _ in range(40)]
    handles = {}
    for room in rooms:
        n = room - rooms[0]
        target = [3 * n, 3 * n + 1, 3 * n + 2]
        handles[room] = (pair.receiver(room), pair.sender(room, target), target)
        handles[room][0].send_metadata(target[::-1])
    for room in reversed(rooms):
        handles[room][1].send(handles[room][2])
    for room in rooms:
        receiver, sender, target = handles[room]
        assert_success(receiver, sender)
        assert pair.target.holds(pair.seed, room, target[::-1])
        receiver.clear()
        sender.clear()


def test_room_numbers_are_free_again_after_clear(pair: Pair):
    room = pair.number()
    for _ in range(5):
        pair.good_room(room)


def test_metrics_say_what_was_measured(pair: Pair):
    room, began = pair.number(), monotonic()
    source, target = shuffled(pair, 16, room)
    receiver, sender = pair.receiver(room), pair.sender(room, source)
    assert sender.get_transfer_metric() == KVTransferMetric()
    receiver.send_metadata(target)
    sender.send(source[:7])
    sender.send(source[7:])
    finish(pair, room, sender, receiver, target)
    wall = monotonic() - began
    for metric in (sender.get_transfer_metric(), receiver.get_transfer_metric()):
        assert metric.transfer_total_bytes == 16 * SHAPE.page_bytes * 2 * SHAPE.layers
        assert metric.latency_source in ("core", "engine")
        assert metric.chunks == 2
        assert metric.total_latency_s is not None
        for part in (
            metric.transfer_latency_s, metric.alloc_latency_s, metric.bootstrap_latency_s, metric.queue_latency_s
        ):  # fmt: skip
            assert part is not None
            assert 0 <= part <= metric.total_latency_s <= wall


def test_warm_up_rooms_move_nothing_and_succeed(pair: Pair):
    addr = f"{FAKE_BOOTSTRAP_HOST}:8998"
    before = pair.prefill.snapshot(), pair.decode.snapshot()
    sender, receiver = pair.prefill.create_sender(addr, 5), pair.decode.create_receiver(addr, 5)
    sender.init(4, 0)
    receiver.init()
    receiver.send_metadata([1, 2, 3, 4], aux_index=0)
    sender.send([1, 2])
    sender.send([3, 4])
    assert sender.poll() is receiver.poll() is KVPoll.Success
    assert sender.get_transfer_metric() == receiver.get_transfer_metric() == KVTransferMetric()
    assert sender.is_release_safe()
    assert receiver.is_release_safe()
    assert pair.target.blank(range(SHAPE.pages))
    for handle in (sender, receiver):
        handle.clear()
    assert (pair.prefill.snapshot()["rooms"], pair.decode.snapshot()["rooms"]) == (
        before[0]["rooms"],
        before[1]["rooms"],
    )


def test_a_manager_without_peers_is_at_rest(pair: Pair):
    assert_at_rest(pair.prefill)
    health = pair.prefill.health() | pair.decode.health() | {"bootstrap": pair.server.health()}
    assert all({"alive", "last_progress_age_s", "exceptions"} <= set(thread) for thread in health.values()), health
    assert all(thread["alive"] for thread in health.values()), health
    assert all(not thread["exceptions"] for thread in health.values()), health

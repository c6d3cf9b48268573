"""With virtual time: a fabric of exactly 10 GB/s, and rooms that are aborted in every state that there is."""

from __future__ import annotations

import pytest

from core.tests.observe.support import Samples, observe, told
from core.tests.protocol.support import Bench, Rank
from kv_core.contract.enums import Role
from kv_core.contract.records import RoomEvent, RoomEventKind
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.rooms import Room

RATE = 10e9
CHUNKS = 5
CHUNK_BYTES = 1_000_000_000


def shared_link(posted: list[float], nbytes: float, rate: float) -> list[float]:
    """When each transfer ends on a link whose rate all transfers under way share evenly."""
    left = dict.fromkeys(range(len(posted)), float(nbytes))
    ends = [0.0] * len(posted)
    now = posted[0]
    while left:
        active = [i for i in left if posted[i] <= now]
        coming = [posted[i] for i in left if posted[i] > now]
        if not active:
            now = min(coming)
            continue
        step = min(left[i] for i in active) * len(active) / rate
        step = min([step, *(at - now for at in coming)])
        now += step
        for i in active:
            left[i] -= step * rate / len(active)
            if left[i] < 1.0:
                ends[i] = now
                del left[i]
    return ends


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.09])
@pytest.mark.parametrize("source", ["core", "engine"])
def test_five_overlapping_chunks_at_ten_gigabytes_a_second(gap: float, source: str):
    bench = Bench()
    prefill, decode = bench.pair()
    sender, _ = bench.bound(prefill, decode, 5, *range(CHUNKS))
    bench.now += 0.75  # the prompt is computed: no time on the network
    for page in range(CHUNKS):
        prefill.send(sender, page)
    chunks: list[TransferKVChunk] = []
    began = bench.now
    posted = [began + 0.1 + gap * i for i in range(CHUNKS)]  # 0.1 s in the queue
    for at in posted:
        bench.now = at
        chunk = prefill.claim()
        assert chunk is not None
        chunks.append(chunk)
    ends = shared_link(posted, CHUNK_BYTES, RATE)
    assert all(posted[i + 1] < ends[i] for i in range(CHUNKS - 1)), "each overlaps the next one"
    for end, i in sorted((end, i) for i, end in enumerate(ends)):
        bench.now = end
        result = ChunkResult(CHUNK_BYTES, posted[i], end, source)
        prefill.do(prefill.machine.chunk_landed, chunks[i], result)
        bench.pump()
    found = observe(prefill, decode)
    for role in ("prefill", "decode"):
        seconds = found.value("kv_core_wire_seconds_sum", role=role, source=source)
        nbytes = found.value("kv_core_room_bytes_sum", role=role)
        assert nbytes == CHUNKS * CHUNK_BYTES == found.value("kv_core_transferred_bytes_total", role=role)
        assert nbytes / seconds == pytest.approx(RATE, rel=0.01)
        assert found.value("kv_core_wire_bytes_per_second_sum", role=role) == pytest.approx(RATE, rel=0.01)
        assert found.value("kv_core_wire_seconds_count", role=role) == 1
        assert found.value("kv_core_room_chunks_sum", role=role) == CHUNKS
    assert found.value("kv_core_queue_wait_seconds_sum", role="prefill") == pytest.approx(0.85)
    assert found.value("kv_core_chunks_posted_total", role="prefill") == CHUNKS


# -- aborts ------------------------------------------------------------------------------------------------------------

SUCCESS_SAMPLES = (
    "wire_seconds_count", "wire_bytes_per_second_count", "room_seconds_count", "bootstrap_seconds_count",
    "queue_wait_seconds_count", "room_bytes_count", "room_chunks_count", "transferred_bytes_total",
)  # fmt: skip
STATES = ["open", "ready", "offered", "moving", "landing", "confirming"]


def bring_to(state: str) -> tuple[Bench, Rank, Rank, Room, Room]:
    """Both sides of a room in the state, as far as they know."""
    bench = Bench()
    prefill, decode = bench.pair()
    sender, receiver = prefill.open(), decode.open()
    prefill.init(sender)
    if state == "open":
        return bench, prefill, decode, sender, receiver
    decode.init(receiver)
    bench.pump()
    if state == "ready":
        return bench, prefill, decode, sender, receiver
    decode.offer(receiver, 7, 8)
    if state == "offered":  # its message is still on the way
        return bench, prefill, decode, sender, receiver
    bench.pump()
    prefill.send(sender, 1)
    chunk = prefill.claim()
    bench.now += 0.5
    if state == "moving":
        return bench, prefill, decode, sender, receiver
    prefill.land(chunk)
    if state == "landing":
        return bench, prefill, decode, sender, receiver
    prefill.send(sender, 2)
    prefill.land()  # and decode has not heard of it
    assert sender.phase.value == "confirming"
    return bench, prefill, decode, sender, receiver


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("state", STATES)
def test_an_abort_in_every_state_leaves_no_success_and_no_negative_duration(state: str, role: Role):
    bench, prefill, decode, sender, receiver = bring_to(state)
    before = observe(prefill, decode)
    bench.now += 0.25
    if role is Role.PREFILL:
        prefill.abort(sender)
    else:
        decode.abort(receiver)
    bench.now += 0.25
    bench.pump()
    bench.pass_time(12)
    assert sender.ended
    assert receiver.ended
    found = observe(prefill, decode)
    # A side that learned of the end too late has every byte and may say so; the one that aborted never.
    failed = [side for side, room in (("prefill", sender), ("decode", receiver)) if room.failure is not None]
    assert role.value in failed
    assert len(failed) == 2 or (state, role) == ("confirming", Role.PREFILL)
    for side in failed:
        for name in SUCCESS_SAMPLES:
            assert same(before, found, f"kv_core_{name}", role=side), f"{name}: an aborted room was observed"
        assert found.value("kv_core_rooms_concluded_total", outcome="success", role=side) == 0
    assert found.value("kv_core_rooms_concluded_total", outcome="aborted") >= 1
    assert found.value("kv_core_refused_samples_total") == 0
    assert all(sample.value >= 0 for sample in found.all)
    for event in (*told(prefill), *told(decode)):
        if isinstance(event, RoomEvent) and event.kind is RoomEventKind.RELEASED:
            assert event.drain_latency_s is not None
            assert event.drain_latency_s >= 0


def same(before: Samples, after: Samples, name: str, **labels: str) -> bool:
    assert after.of(name, **labels)
    return [s.value for s in before.of(name, **labels)] == [s.value for s in after.of(name, **labels)]


def test_the_drain_is_the_time_from_the_end_to_the_proof():
    bench, prefill, _, sender, _ = bring_to("moving")
    prefill.abort(sender)
    bench.now += 1.5
    assert not sender.release_safe
    prefill.do(prefill.machine.chunk_quiescent, next(iter(chunks_of(sender))))
    bench.pump()
    released = [e for e in prefill.told if e.kind is RoomEventKind.RELEASED and e.life == sender.life]
    assert [e.drain_latency_s for e in released] == [pytest.approx(1.5)]
    assert observe(prefill).value("kv_core_drain_seconds_bucket", le="1.0") < observe(prefill).value(
        "kv_core_drain_seconds_bucket", le="2.5"
    )
    assert all(e.drain_latency_s is None for e in prefill.told if e.kind is not RoomEventKind.RELEASED)


def chunks_of(room: Room) -> list[TransferKVChunk]:
    from types import SimpleNamespace

    return [SimpleNamespace(room=room, link=link, number=0) for link in room.links.values()]  # type: ignore[misc]

"""The queues: how many, which room goes where, and that none is served before another has had its turn."""

from __future__ import annotations

import os
import threading

import pytest

from core.tests.transfer.support import bench, settings, until
from kv_core.contract.enums import Role
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.effects import SubmitChunk
from kv_core.protocol.rooms import Room
from kv_core.runtime.transfer.shards import Shards, shard_count


def chunk_of(number: int) -> TransferKVChunk:
    """A chunk of a room; nothing but its number matters here."""
    room = Room(Role.PREFILL, number, 1, "", 0.0)
    return TransferKVChunk(room, None, None, 0, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cpus", "usable", "expected"), [(2, 2, 2), (64, 64, 4), (128, 128, 8), (384, 384, 12), (384, 3, 3)]
)
def test_the_number_of_shards_follows_the_cpus(monkeypatch, cpus, usable, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(usable)))
    assert shard_count(None) == expected
    assert shard_count(31) == 31


def test_a_rooms_chunks_stay_in_order_and_rooms_take_turns():
    shards = Shards(3)
    for number in (0, 3, 6, 9, 1, 2):
        shards.put(chunk_of(number))
    assert shards.counts() == [4, 1, 1]
    assert [chunk.room.number for chunk in shards.take(3)] == [0, 1, 2]
    assert [chunk.room.number for chunk in shards.take(100)] == [3, 6, 9]
    assert shards.empty
    assert shards.counts() == [4, 1, 1]


def test_a_taken_chunk_is_counted_until_it_has_left():
    shards = Shards(2)
    shards.put(chunk_of(5))
    (chunk,) = shards.take(10)
    assert shards.counts() == [0, 1]
    shards.left(chunk)
    assert shards.counts() == [0, 0]


def test_chunks_put_by_many_threads_at_once_all_land():
    with bench(config=settings(queue_shards=4)) as b:
        peers = [b.peer(f"decode-{k}") for k in range(4)]
        chunks = [[b.chunk(peers[k], [n % 16], [n % 16]) for n in range(250)] for k in range(4)]

        def put(mine: list[TransferKVChunk]) -> None:
            for chunk in mine:
                b.engine.put(SubmitChunk(chunk))

        threads = [threading.Thread(target=put, args=(mine,)) for mine in chunks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        until(lambda: all(b.has_landed(chunk) for mine in chunks for chunk in mine))
        b.rest()

"""A real consumer: Dynamo's standalone indexer (wheel ai-dynamo-runtime) hears our events and answers queries rightly.

Runs where the wheel is: in this environment, in the one that ``KV_DYNAMO_PYTHON`` names the interpreter of, or skips.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import requests

from core.tests.events.support import batch, publishing, removed, until
from kv_core.events import AllBlocksCleared, BlockStored, ZmqEventPublisher

MODEL = "model"
SIZE = 4


def interpreter() -> str | None:
    named = os.environ.get("KV_DYNAMO_PYTHON")
    if named:
        return named
    return sys.executable if importlib.util.find_spec("dynamo") and importlib.util.find_spec("dynamo.indexer") else None


pytestmark = [
    pytest.mark.skipif(
        interpreter() is None,
        reason="Dynamo's indexer is not installed: pip install ai-dynamo-runtime==1.6.1, or KV_DYNAMO_PYTHON=.../python",
    ),
    pytest.mark.timeout(120),
]


class Indexer:
    """The process, and what it answers."""

    def __init__(self, url: str) -> None:
        self.url = url

    def up(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    def register(self, publisher: ZmqEventPublisher, instance: int = 1) -> None:
        source = publisher.describe_local_source(SIZE)
        body = {"instance_id": instance, "model_name": MODEL, "endpoint": source["endpoint"], "block_size": SIZE}
        body |= {"dp_rank": source["dp_rank"]}
        if "replay_endpoint" in source:
            body["replay_endpoint"] = source["replay_endpoint"]
        answer = requests.post(f"{self.url}/register", json=body, timeout=10)
        assert answer.status_code == 201, answer.text

    def matched(self, tokens: list[int], instance: int = 1) -> int:
        """How many of these tokens the instance has, from the first one on."""
        answer = requests.post(f"{self.url}/query", json={"token_ids": tokens, "model_name": MODEL}, timeout=10)
        assert answer.ok, answer.text
        ranks = answer.json()["scores"].get(str(instance), {})
        return max(ranks.values(), default=0)


@pytest.fixture
def indexer(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # the indexer can't tell which port it got, so it has to be given one
    log = tmp_path / "indexer.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [interpreter() or "", "-m", "dynamo.indexer", "--port", str(port), "--block-size", str(SIZE), "--threads", "1"],
            stdout=file, stderr=file, env=os.environ | {"NO_COLOR": "1"},
        )  # fmt: skip
        found = Indexer(f"http://127.0.0.1:{port}")
        try:
            until(lambda: found.up() or process.poll() is not None, "the indexer's start")
            assert process.poll() is None, log.read_text()
            yield found
        finally:
            process.terminate()
            process.wait(30)


def tokens(first: int, blocks: int) -> list[int]:
    return list(range(first * 1000, first * 1000 + blocks * SIZE))


def chain(first: int, blocks: int, offset: int = 0) -> list[BlockStored]:
    """One event for each block of a prompt; a hash is the prompt's number and the block's."""
    words = tokens(first, blocks)
    return [
        BlockStored(
            [first * 100 + place + offset], first * 100 + place + offset - 1 if place else None,
            words[place * SIZE : (place + 1) * SIZE], SIZE, None, "GPU",
        )
        for place in range(blocks)
    ]  # fmt: skip


def publish(publisher: ZmqEventPublisher, *events) -> None:
    for event in events:
        publisher.publish(batch(event))


def hears(indexer: Indexer, publisher: ZmqEventPublisher, mark: int = 9) -> None:
    """Publish until the indexer has heard something: its subscription is there. With replay this also fills what it missed."""

    def heard() -> bool:
        publish(publisher, *chain(mark, 1))
        return indexer.matched(tokens(mark, 1)) == SIZE

    until(heard, "the subscription")


@pytest.mark.parametrize("profile", ["map", "vllm", "legacy", "dynamo"])
def test_every_profile_is_understood(indexer, profile):
    with publishing(profile=profile) as publisher:
        indexer.register(publisher)
        hears(indexer, publisher)
        publish(publisher, *chain(1, 3), *chain(-2, 2))
        until(lambda: indexer.matched(tokens(1, 5)) == 3 * SIZE, "three blocks")
        until(lambda: indexer.matched([*tokens(1, 2), 5, 5, 5, 5]) == 2 * SIZE, "a shorter match")
        publish(publisher, removed(102))
        until(lambda: indexer.matched(tokens(1, 5)) == 2 * SIZE, "a removal")
        publish(publisher, AllBlocksCleared(), *chain(3, 1))
        until(lambda: indexer.matched(tokens(3, 1)) == SIZE, "what came after the clearing")
        assert indexer.matched(tokens(1, 5)) == 0


def test_a_late_joiner_gets_what_was_before_it(indexer):
    with publishing() as publisher:
        publish(publisher, *chain(1, 3))
        until(lambda: publisher.stats()["published_batches"] == 3)
        indexer.register(publisher)
        hears(indexer, publisher)
        until(lambda: indexer.matched(tokens(1, 3)) == 3 * SIZE, "the replay from the beginning")
        assert publisher.stats()["replay_requests"] == 1


def test_a_gap_is_filled_by_replay(indexer):
    """The middle of a chain reaches nobody: the publisher's topic is turned for it, as an overfull socket would drop it."""
    with publishing() as publisher:
        indexer.register(publisher)
        hears(indexer, publisher)
        asked = publisher.stats()["replay_requests"]
        lost_on_the_way(publisher, chain(1, 3)[1:])
        publish(publisher, *chain(2, 1))
        until(lambda: indexer.matched(tokens(2, 1)) == SIZE, "what came after the gap")
        until(lambda: indexer.matched(tokens(1, 3)) == 3 * SIZE, "the gap's blocks")
        assert publisher.stats()["replay_requests"] == asked + 1


def lost_on_the_way(publisher: ZmqEventPublisher, events) -> None:
    """Publish with the PUB socket's sending turned off: numbers are given and the ring is filled, nothing is heard."""
    sender = publisher._sender
    real: Any = sender._socket
    first = chain(1, 1)
    publish(publisher, *first)
    until(lambda: publisher.stats()["queued"] == 0)
    before = publisher.stats()["published_batches"]

    class Deaf:
        def send_multipart(self, *_):
            pass

    deaf: Any = Deaf()
    sender._socket = deaf
    publish(publisher, *events)
    until(lambda: publisher.stats()["published_batches"] == before + len(events))
    sender._socket = real


def test_a_gap_beyond_the_ring_leaves_no_block_that_is_not_there(indexer):
    with publishing(buffer_steps=2) as publisher:
        indexer.register(publisher)
        hears(indexer, publisher)
        publish(publisher, *chain(1, 3))
        until(lambda: indexer.matched(tokens(1, 3)) == 3 * SIZE)
        lost_on_the_way(publisher, [removed(101, 102), *chain(4, 2), *chain(5, 2)])
        publish(publisher, *chain(6, 1))
        until(lambda: indexer.matched(tokens(6, 1)) == SIZE, "what came after the gap")
        assert indexer.matched(tokens(1, 3)) == 0  # it was told to forget, and the removal is beyond the ring
        assert publisher.stats()["incomplete_replays"] == 1


def test_loss_before_a_number_was_given_is_understood_as_a_clearing(indexer):
    with publishing() as publisher:
        indexer.register(publisher)
        hears(indexer, publisher)
        publish(publisher, *chain(1, 3))
        until(lambda: indexer.matched(tokens(1, 3)) == 3 * SIZE)
        asked = publisher.stats()["replay_requests"]
        publish(publisher, object(), *chain(2, 1))  # the first can't be written down
        until(lambda: indexer.matched(tokens(2, 1)) == SIZE, "what came after the loss")
        assert indexer.matched(tokens(1, 3)) == 0
        assert publisher.stats()["lost_batches"] == 1
        assert publisher.stats()["replay_requests"] == asked  # numbers have no hole


def test_a_restart_on_the_same_endpoints_without_registering_again(indexer):
    with publishing() as first:
        indexer.register(first)
        hears(indexer, first)
        publish(first, *chain(1, 3))
        until(lambda: indexer.matched(tokens(1, 3)) == 3 * SIZE)
        first.shutdown()
        with publishing(endpoint=first.endpoint, replay_endpoint=first.replay_endpoint, bind=True) as second:
            publish(second, *chain(2, 2))
            hears(indexer, second, mark=8)
            until(lambda: indexer.matched(tokens(2, 2)) == 2 * SIZE, "the new life's blocks, through replay")
            assert indexer.matched(tokens(1, 3)) == 0  # the old life's blocks are gone
            assert indexer.matched(tokens(9, 1)) == 0


def test_why_lives_begin_with_the_clock(indexer):
    """What happens to everybody else: a publisher that counts from 0 again is not heard."""
    with publishing(first_seq="zero") as first:
        indexer.register(first)
        hears(indexer, first)
        publish(first, *chain(1, 3))
        until(lambda: indexer.matched(tokens(1, 3)) == 3 * SIZE)
        first.shutdown()
        with publishing(
            endpoint=first.endpoint, replay_endpoint=first.replay_endpoint, bind=True, first_seq="zero"
        ) as second:
            publish(second, *chain(2, 1))
            hears(indexer, second, mark=8)  # heard once its numbers are above the old ones
            assert indexer.matched(tokens(1, 3)) == 3 * SIZE  # blocks that are long gone

"""Publishers on loopback ports that the system chooses, and subscribers that are known to be connected."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from kv_core.events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch, Subscription, ZmqEventPublisher
from kv_core.events.numbers import from_frame

LIMIT_S = 30.0
LOOPBACK = "tcp://127.0.0.1:0"


def stored(block: int, parent: int | None = None, tokens=(1, 2), **more) -> BlockStored:
    return BlockStored(
        block_hashes=[block],
        parent_block_hash=parent,
        token_ids=list(tokens),
        block_size=len(tokens),
        lora_id=None,
        **more,
    )


def removed(*blocks: int) -> BlockRemoved:
    return BlockRemoved(block_hashes=list(blocks))


def batch(*events) -> KVEventBatch:
    return KVEventBatch(1.5, list(events))


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait for something, with a generous limit."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not come within {LIMIT_S} s"
        time.sleep(0.005)


@contextlib.contextmanager
def publishing(**config) -> Iterator[ZmqEventPublisher]:
    config = {"endpoint": LOOPBACK, "replay_endpoint": LOOPBACK} | config
    publisher = ZmqEventPublisher(**config)
    try:
        yield publisher
    finally:
        publisher.shutdown()


def join(subscription: Subscription, publisher: ZmqEventPublisher) -> int:
    """Publish until the subscriber hears it, read all of that, and return the next number."""
    while True:
        publisher.publish(batch(AllBlocksCleared()))
        message = subscription.receive(0.05)
        if message is not None:
            break
    until(lambda: publisher.stats()["queued"] == 0, "an empty queue")
    while True:
        following = publisher.first_seq + publisher.stats()["published_batches"]
        if from_frame(message.frames[1]) + 1 == following and publisher.stats()["queued"] == 0:
            return following
        message = subscription.receive(LIMIT_S) or message


def seqs(messages) -> list[int]:
    return [from_frame(message.frames[1]) for message in messages]

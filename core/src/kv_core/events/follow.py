"""A stream without holes as far as a publisher can fill them: live messages, and replays where something is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kv_core.events.consumer import Message, Subscription, replay
from kv_core.events.errors import ReplayError
from kv_core.events.numbers import from_frame
from kv_core.events.sequence import Sequence

WAIT_S = 0.2
"""How long one look at the socket takes at the most, so that an end is noticed."""


def follow(
    subscription: Subscription,
    replay_endpoint: str | None,
    *,
    ended: Callable[[], bool],
    trouble: Callable[[ReplayError], None],
    timeout_s: float = 10.0,
) -> Iterator[Message]:
    """Messages in order until `ended` says so.

    With a replay endpoint everything that the publisher still has comes first, and whenever numbers are missing what it
    has from there on; live messages that a replay brought already are left out. `trouble` is told of replays that fail.
    """
    sequence = Sequence()

    def replayed(start: int) -> Iterator[Message]:
        try:
            for message in replay(replay_endpoint or "", start, timeout_s=timeout_s):
                _take(sequence, message)
                yield message
        except ReplayError as error:
            trouble(error)

    if replay_endpoint:
        yield from replayed(0)
    while not ended():
        message = subscription.receive(WAIT_S)
        if message is None:
            continue
        frames = message.frames
        if len(frames) == 3 and len(frames[1]) == 8:
            step = sequence.look(from_frame(frames[1]))
            if replay_endpoint and step.kind in {"gap", "restart"}:
                yield from replayed(step.expected)
                step = sequence.look(from_frame(frames[1]))
            if replay_endpoint and step.kind == "stale":
                continue
        _take(sequence, message)
        yield message


def _take(sequence: Sequence, message: Message) -> None:
    if len(message.frames) == 3 and len(message.frames[1]) == 8:
        sequence.take(from_frame(message.frames[1]))

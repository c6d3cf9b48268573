"""What the checker says of streams that are right and of streams that are not."""

from __future__ import annotations

import msgspec
import pytest

from core.tests.events.support import batch, removed, stored
from kv_core.events import AllBlocksCleared, BlockStored, StreamChecker, make_profile
from kv_core.events.checker import MAX_FINDINGS
from kv_core.events.numbers import END_SEQ, first_of_life

LIFE = first_of_life(1_795_000_000_000)


def frames(seq, *events, profile="map", rank=0):
    one = batch(*events)
    one.attn_dp_rank = rank
    return [b"", seq.to_bytes(8, "big"), make_profile(profile).encode(one)]


def raw(seq, *events):
    return [b"", seq.to_bytes(8, "big"), msgspec.msgpack.encode([1.0, list(events), 0])]


def checked(*messages):
    checker = StreamChecker()
    for message in messages:
        checker.feed(message)
    return checker


def codes(checker):
    return [(finding.severity, finding.code) for finding in checker.findings]


@pytest.mark.parametrize(("profile", "shape"), [("map", "map"), ("vllm", "vllm"), ("legacy", "array")])
@pytest.mark.parametrize("first", [0, LIFE])
def test_a_good_stream(profile, shape, first):
    checker = checked(
        frames(first, stored(1), stored(2, 1), profile=profile),
        frames(first + 1, stored(3, 2), removed(3), profile=profile),
        frames(first + 2, AllBlocksCleared(), stored(9), profile=profile),
    )
    assert codes(checker) == []
    assert (checker.blocks, checker.batches, checker.lives) == (1, 3, 1)
    assert checker.events == {"BlockStored": 4, "BlockRemoved": 1, "AllBlocksCleared": 1}
    assert shape in checker.profiles
    assert not checker.failed()


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ([b"", b"1"], ("error", "frame_count")),
        ([b"", b"1", b""], ("error", "seq_length")),
        ([b"", END_SEQ, b""], ("warning", "end_marker")),
        ([b"", bytes(8), b"nonsense"], ("error", "schema")),
        (raw(0, {"type": "BlocksLost"}), ("error", "schema")),
        (raw(0, {"type": "BlockRemoved", "block_hashes": [b"x" * 32]}), ("error", "bytes_hash")),
        (raw(0, {"block_hashes": [], "type": "BlockRemoved", "x": 1}), ("warning", "unknown_keys")),
        (frames(0, stored(1, parent=99)), ("error", "unknown_parent")),
        (frames(0, stored(1, parent=1)), ("error", "own_parent")),
        (frames(0, removed(5)), ("warning", "unknown_removal")),
        (frames(0, BlockStored([1], None, [1, 2, 3], 2, None)), ("error", "token_count")),
        (frames(0, BlockStored([], None, [], 2, None)), ("warning", "empty_event")),
        (frames(0, stored(1), stored(2, tokens=(1, 2, 3))), ("warning", "block_size")),
    ],
)
def test_one_wrong_message(message, wanted):
    assert wanted in codes(checked(message))


def test_numbers():
    checker = checked(frames(LIFE), frames(LIFE + 3), frames(LIFE + 3), frames(LIFE + 4))
    assert codes(checker) == [("error", "gap"), ("error", "stale")]
    assert (checker.missing, checker.failed()) == (2, True)


def test_who_joins_in_the_middle_is_not_the_publishers_fault():
    checker = checked(frames(LIFE + 7, stored(1, parent=99), removed(5)))
    assert codes(checker) == [("note", "unknown_parent"), ("note", "unknown_removal")]
    assert checker.wants(frames(LIFE + 9)) == LIFE + 8
    assert checker.wants(frames(LIFE + 8)) is None
    assert StreamChecker().wants(frames(LIFE + 7)) == 0


def test_after_a_clearing_everything_is_known_again():
    checker = checked(frames(7, stored(1)), frames(8, AllBlocksCleared()), frames(9, stored(2, parent=1)))
    assert codes(checker) == [("error", "unknown_parent")]


def test_loss_that_is_said_is_a_warning():
    checker = checked(
        frames(0, stored(1)), frames(1, AllBlocksCleared("overflow", 2, 5)), frames(2, stored(3, parent=1)),
        frames(9, AllBlocksCleared("truncated", 4)),
    )  # fmt: skip
    assert codes(checker) == [
        ("warning", "loss_said"),
        ("note", "unknown_parent"),
        ("warning", "gap"),
        ("warning", "loss_said"),
    ]
    assert not checker.failed()


def test_a_restart_is_a_note_and_what_was_is_forgotten():
    later = LIFE + (60_000 << 22)
    checker = checked(frames(LIFE, stored(1)), frames(later, stored(2, parent=1)))
    assert codes(checker) == [("note", "restart"), ("error", "unknown_parent")]
    assert checker.lives == 2


def test_a_replay_stands_in_for_what_was_missed_and_live_copies_are_skipped():
    checker = StreamChecker()
    checker.feed(frames(LIFE, stored(1)))
    live = frames(LIFE + 2, stored(3, 2))
    assert checker.wants(live) == LIFE + 1
    for message in (frames(LIFE + 1, stored(2, 1)), live, frames(LIFE + 3, stored(4, 3))):
        checker.feed(message, replayed=True)
    checker.feed(live)
    checker.feed(frames(LIFE + 3, stored(4, 3)))
    checker.feed(frames(LIFE + 4, removed(4)))
    assert codes(checker) == []
    assert (checker.batches, checker.blocks) == (5, 3)


def test_ranks_have_caches_of_their_own():
    checker = checked(frames(0, stored(1), rank=0), frames(1, stored(2, parent=1), rank=1))
    assert codes(checker) == [("error", "unknown_parent")]


def test_profiles_in_one_stream_and_topics():
    checker = checked(frames(0, stored(1)), [b"t", *frames(1, stored(2), profile="legacy")[1:]])
    assert codes(checker) == [("note", "topic"), ("warning", "mixed_profiles")]


def test_media_are_followed_apart():
    checker = checked(
        frames(0, stored(1, medium="GPU"), stored(1, medium="CPU_PINNED")),
        frames(1, *[msgspec.structs.replace(removed(1), medium="GPU")] * 2),
        frames(2, stored(2, parent=1)),
    )
    assert codes(checker) == [("warning", "unknown_removal")]


def test_findings_are_bounded_and_counted():
    checker = StreamChecker()
    for _ in range(MAX_FINDINGS + 5):
        checker.feed([b""])
    assert len(checker.findings) == MAX_FINDINGS
    assert checker.counts["error", "frame_count"] == MAX_FINDINGS + 5

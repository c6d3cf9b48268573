"""What pages hold, and that nothing but that passes for it."""

from __future__ import annotations

import numpy as np
import pytest

from kv_core.cli.demo.pages import POISON, Content, FreeList, Memory, Shape

ROOM = 2**63 - 1
SHAPE = Shape(layers=2, page_bytes=200, num_pages=12, num_rows=3, aux_bytes=50)  # items of 100 bytes: no whole words
ROW = 1


def pages(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


@pytest.fixture
def content() -> Content:
    return Content(seed=7, longest_item=100)


@pytest.fixture
def memory(content: Content) -> Memory:
    """A memory that holds one room's prompt of three pages."""
    made = Memory(SHAPE)
    made.fill(content, ROOM, pages(9, 0, 5), first=0)
    made.fill_row(content, ROOM, ROW)
    return made


def test_content_repeats_from_its_seed() -> None:
    first = Content(7, 100).pages(ROOM, 3, np.arange(4), 100)
    assert first.shape == (4, 100)
    assert np.array_equal(first, Content(7, 100).pages(ROOM, 3, np.arange(4), 100))
    assert not np.array_equal(first, Content(8, 100).pages(ROOM, 3, np.arange(4), 100))


def test_a_page_does_not_depend_on_the_chunk_it_comes_in(content: Content) -> None:
    whole = content.pages(ROOM, 3, np.arange(6), 100)
    assert np.array_equal(whole[4:], content.pages(ROOM, 3, np.arange(4, 6), 100))


def test_every_byte_can_be_told_from_poison(content: Content) -> None:
    found = content.pages(0, 0, np.arange(500), 100)
    assert POISON % 2 == 0
    assert (found % 2 == 1).all()
    assert len(np.unique(found)) == 128


def test_no_two_places_hold_the_same(content: Content) -> None:
    places = [
        content.pages(room, buffer, np.arange(8), 100)[position].tobytes()
        for room in (0, 1, ROOM)
        for buffer in range(4)
        for position in range(8)
    ]
    assert len(set(places)) == len(places)


def test_what_was_filled_is_right(memory: Memory, content: Content) -> None:
    assert memory.wrong_bytes(content, ROOM, pages(9, 0, 5), ROW) == 0


def test_chunks_make_the_same_prompt_as_one_piece(content: Content) -> None:
    memory = Memory(SHAPE)
    memory.fill_row(content, ROOM, ROW)
    memory.fill(content, ROOM, pages(9), first=0)
    memory.fill(content, ROOM, pages(0, 5), first=1)
    assert memory.wrong_bytes(content, ROOM, pages(9, 0, 5), ROW) == 0


def test_a_flipped_bit_is_one_wrong_byte(memory: Memory, content: Content) -> None:
    for buffer in memory.buffers:
        buffer[5, 99] ^= 0x10
    memory.rows[ROW, 0] ^= 1
    assert memory.wrong_bytes(content, ROOM, pages(9, 0, 5), ROW) == len(memory.buffers) + 1


@pytest.mark.parametrize(("room", "order"), [(ROOM - 1, (9, 0, 5)), (ROOM, (0, 9, 5)), (ROOM, (9, 0, 1))])
def test_another_room_another_order_and_another_page_are_wrong(
    memory: Memory, content: Content, room: int, order: tuple[int, ...]
) -> None:
    assert memory.wrong_bytes(content, room, pages(*order), ROW) > 0


def test_swapped_buffers_are_wrong(memory: Memory, content: Content) -> None:
    memory.buffers[0], memory.buffers[1] = memory.buffers[1], memory.buffers[0]
    assert memory.wrong_bytes(content, ROOM, pages(9, 0, 5), ROW) > 0


def test_bytes_that_never_came_are_all_wrong(content: Content) -> None:
    wrong = Memory(SHAPE).wrong_bytes(content, ROOM, pages(9, 0, 5), ROW)
    assert wrong == SHAPE.request_bytes(3)


def test_poison_is_seen_to_be_touched(memory: Memory) -> None:
    untouched = pages(1, 2, 3, 4, 6, 7, 8, 10, 11)
    assert memory.touched_bytes(untouched, pages(0, 2)) == 0
    assert memory.touched_bytes(pages(5), pages(ROW)) == SHAPE.request_bytes(1)
    memory.buffers[2][11, 0] = 0
    assert memory.touched_bytes(untouched, pages(0, 2)) == 1


def test_poison_leaves_nothing(memory: Memory) -> None:
    memory.poison(pages(9, 0, 5), ROW)
    assert memory.touched_bytes(np.arange(12, dtype=np.uint64), np.arange(3, dtype=np.uint64)) == 0


def test_the_memory_is_described_as_core_wants_it(memory: Memory) -> None:
    args = memory.args()
    assert [(buffer.layer, buffer.part) for buffer in args.kv.buffers] == [(0, "k"), (0, "v"), (1, "k"), (1, "v")]
    assert [buffer.address for buffer in args.kv.buffers] == [array.ctypes.data for array in memory.buffers]
    assert args.aux is not None
    assert args.kv.item_bytes * 3 + args.aux.item_bytes == SHAPE.request_bytes(3)
    assert (args.kv.num_items, args.aux.num_items) == (12, 3)


def test_numbers_are_free_or_taken_and_come_in_random_order() -> None:
    free = FreeList(100, np.random.default_rng(1))
    first, second = free.take(40), free.take(60)
    assert first is not None
    assert second is not None
    assert free.take(1) is None
    assert sorted([*first, *second]) == list(range(100))
    assert list(first) != sorted(first)
    free.give_back(first)
    assert free.take(41) is None
    again = free.take(40)
    assert again is not None
    assert sorted(again) == sorted(first)

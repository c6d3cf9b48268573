"""When a room ends: once every announced page has been handed over on every layer."""

from __future__ import annotations

from collections.abc import Sequence


class Coverage:
    """How far a room's chunks have come, layer by layer.

    ``num_items`` pages were announced; ``layers`` are the distinct layer numbers of this rank's KV pool. A room without
    pages is complete after its one empty chunk. Not thread-safe: one room, one lock.
    """

    __slots__ = ("_begun", "_common", "_cursors", "_layers", "_num_items", "_open")

    def __init__(self, num_items: int, layers: Sequence[int]) -> None:
        if num_items < 0:
            raise ValueError(f"a room can't have {num_items} pages")
        self._layers = tuple(sorted(set(layers)))
        if not self._layers or len(self._layers) != len(layers):
            raise ValueError(f"layers must be distinct numbers, at least one, got {list(layers)[:64]}")
        self._num_items = num_items
        self._common = 0  # cursor of every layer, as long as ...
        self._cursors: dict[int, int] | None = None  # ... they don't differ
        self._open = num_items * len(self._layers)  # pages x layers still to come
        self._begun = False

    @property
    def complete(self) -> bool:
        """Whether every layer has all pages, and at least one chunk has come."""
        return self._open == 0 and self._begun

    def advance(self, n: int, layers: range | None = None) -> int:
        """Count a chunk of ``n`` pages on these layers (None: all). Returns the position of its first page.

        A range may contain numbers that this rank has no pages of. Raises ``ValueError``, and changes nothing, if the
        range's layers stand at different positions, if there are none, or beyond the announced number of pages.
        """
        if n < 0:
            raise ValueError(f"a chunk can't have {n} pages")
        if layers is None and self._cursors is None:
            start, count = self._common, len(self._layers)
            self._check(start, n)
            self._common += n
        else:
            chosen = self._chosen(layers)
            start, count = self._start(chosen, n), len(chosen)
            self._check(start, n)
            self._move(chosen, start + n, n)
        self._open -= n * count
        self._begun = True
        return start

    def _chosen(self, layers: range | None) -> tuple[int, ...]:
        if layers is None:
            return self._layers
        if layers.step != 1:
            raise ValueError(f"layers must be a range of step 1, got {layers}")
        return tuple(layer for layer in self._layers if layers.start <= layer < layers.stop)

    def _start(self, chosen: tuple[int, ...], n: int) -> int:
        cursors = sorted({self._at(layer) for layer in chosen})
        if n and not cursors:
            raise ValueError(
                f"a chunk of {n} pages names none of this rank's layers, {self._layers[0]} to {self._layers[-1]}"
            )
        if n and len(cursors) > 1:
            behind = next(layer for layer in chosen if self._at(layer) == cursors[0])
            ahead = next(layer for layer in chosen if self._at(layer) == cursors[-1])
            raise ValueError(
                f"the layers of one chunk must stand at the same page, but layer {behind} stands at {cursors[0]} and "
                f"layer {ahead} at {cursors[-1]}: send the lagging layers first, or each in a chunk of its own"
            )
        return cursors[0] if cursors else 0

    def _at(self, layer: int) -> int:
        return self._common if self._cursors is None else self._cursors[layer]

    def _check(self, start: int, n: int) -> None:
        if start + n > self._num_items:
            raise ValueError(
                f"a chunk of {n} pages at page {start} goes beyond the {self._num_items} pages that were announced"
            )

    def _move(self, chosen: tuple[int, ...], to: int, n: int) -> None:
        if not n:
            return
        if self._cursors is None:
            self._cursors = dict.fromkeys(self._layers, self._common)
        self._cursors.update(dict.fromkeys(chosen, to))
        if len(set(self._cursors.values())) == 1:
            self._common, self._cursors = to, None

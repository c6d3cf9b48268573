"""Follows which blocks there are, as a router's index would, and says where the events contradict it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kv_core.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, Event

MAX_BLOCKS = 2_000_000
"""More blocks than this are not followed: then nothing is said of parents and removals any more."""

Remark = tuple[str, str, str]
"""Severity ("error", "warning", "note"), a fixed code, a sentence."""


class Chains:
    """The blocks of one rank.

    ``blind`` as long as blocks may be there that were never told of (joined in the middle, a gap): what is unknown is then
    a note and no error.
    """

    def __init__(self, *, blind: bool) -> None:
        self.blind = blind
        self.block_size: int | None = None
        self._media: dict[int, set[str | None]] = {}
        self._full = False

    def __len__(self) -> int:
        return len(self._media)

    def apply(self, event: Event) -> Iterator[Remark]:
        """Take an event in; yields what is wrong with it."""
        if isinstance(event, AllBlocksCleared):
            self._media.clear()
            # After the engine's own clearing everything is known; after a loss blocks may be there that nobody tells of.
            self.blind = event.reason in {"overflow", "truncated"}
        elif isinstance(event, BlockStored):
            yield from self._shape(event)
            yield from self._stored(event)
        else:
            yield from self._removed(event)

    def _shape(self, event: BlockStored) -> Iterator[Remark]:
        wanted = len(event.block_hashes) * event.block_size
        if len(event.token_ids) != wanted:
            blocks = f"{len(event.block_hashes)} blocks of {event.block_size} tokens"
            yield "error", "token_count", f"{blocks} need {wanted} tokens, there are {len(event.token_ids)}"
        if self.block_size is not None and event.block_size != self.block_size:
            sizes = f"block size {event.block_size} after {self.block_size}"
            yield "warning", "block_size", f"{sizes}: a router indexes only its own"
        self.block_size = self.block_size or event.block_size
        hashes = [*event.block_hashes, *([] if event.parent_block_hash is None else [event.parent_block_hash])]
        if len(set(hashes)) != len(hashes):
            yield "error", "own_parent", "a hash stands twice in one event: Dynamo drops it"
        if not event.block_hashes:
            yield "warning", "empty_event", "an event without blocks"

    def _stored(self, event: BlockStored) -> Iterator[Remark]:
        parent = event.parent_block_hash
        if parent is not None and parent not in self._media and not self._full:
            severity = "note" if self.blind else "error"
            yield (
                severity,
                "unknown_parent",
                f"parent {parent} was never stored, or is removed: the blocks hang in the air",
            )
        if len(self._media) + len(event.block_hashes) > MAX_BLOCKS and not self._full:
            self._full = True
            yield (
                "note",
                "too_many_blocks",
                f"more than {MAX_BLOCKS} blocks: parents and removals are not checked any more",
            )
        if not self._full:
            for block in event.block_hashes:
                self._media.setdefault(block, set()).add(event.medium)

    def _removed(self, event: BlockRemoved) -> Iterator[Remark]:
        unknown = 0
        for block in event.block_hashes:
            media = self._media.get(block)
            if media is None or event.medium not in media:
                unknown += 1
                continue
            media.discard(event.medium)
            if not media:
                del self._media[block]
        if unknown and not self._full:
            severity = "note" if self.blind else "warning"
            yield severity, "unknown_removal", f"{unknown} of {len(event.block_hashes)} removed blocks were not there"

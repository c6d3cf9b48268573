"""What the prefill side keeps of rooms that its engine has not opened yet: early news, and early endings. Bounded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from kv_core.contract.failures import Failure
from kv_core.protocol.messages import Metadata
from kv_core.protocol.peers import Peer


@dataclass
class Early:
    """A decode rank has spoken of a room: it queues for pages, or has named them. ``destinations``: ranks that will.
    ``traceparent``: the trace that its engine named.
    """

    number: int
    peer: Peer
    life: int
    metadata: Metadata | None
    expires: float
    destinations: int = 1
    traceparent: str | None = None


class Inbox:
    """Early announcements and metadata, by room number, then by peer and life."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._rooms: dict[int, dict[tuple[str, int], Early]] = {}
        self._by_peer: dict[tuple[str, int], Early] = {}
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_peer)

    def put(self, early: Early) -> bool:
        """Keep this news, instead of older news of the same life; False if there is no room for it."""
        key = (early.peer.name, early.life)
        self.pop(early.peer, early.life)
        size = _size(early)
        if len(self._by_peer) >= self._max_entries or self._bytes + size > self._max_bytes:
            return False
        self._bytes += size
        self._by_peer[key] = early
        self._rooms.setdefault(early.number, {})[key] = early
        return True

    def get(self, peer: Peer, life: int) -> Early | None:
        """The news of this life of this peer."""
        return self._by_peer.get((peer.name, life))

    def pop(self, peer: Peer, life: int) -> Early | None:
        """Take the news of this life of this peer out."""
        early = self._by_peer.pop((peer.name, life), None)
        if early is not None:
            self._bytes -= _size(early)
            entries = self._rooms[early.number]
            del entries[(peer.name, life)]
            if not entries:
                del self._rooms[early.number]
        return early

    def take_room(self, number: int) -> list[Early]:
        """Take all news of a room out, oldest first."""
        entries = list(self._rooms.get(number, {}).values())
        for early in entries:
            self.pop(early.peer, early.life)
        return entries

    def numbers(self, peer: Peer) -> list[int]:
        """Rooms of which there is news of a peer."""
        return [early.number for early in self._by_peer.values() if early.peer is peer]

    def take_peer(self, peer: Peer) -> list[Early]:
        """Take all news of a peer out."""
        entries = [early for early in self._by_peer.values() if early.peer is peer]
        for early in entries:
            self.pop(early.peer, early.life)
        return entries


def _size(early: Early) -> int:
    metadata = early.metadata
    if metadata is None:
        return 256
    return 256 + len(metadata.kv.data) + sum(len(state.data) for state in metadata.states.values())


@dataclass
class Stone:
    """How a room ended before the other side came. ``remote``: decode ended it (``peer`` did), so prefill's opening
    fails; else prefill did, and the decode ranks that ask for it are told. ``told``: how many of them know already.
    """

    failure: Failure
    expires: float
    remote: bool = False
    peer: str = ""
    destinations: int = 1
    told: int = 0


class Tombstones:
    """Rooms that ended before the other side came: whoever opens one fails at once with the reason. Oldest go first."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._stones: OrderedDict[int, Stone] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stones)

    def put(self, number: int, stone: Stone) -> None:
        """Remember the end of a room."""
        self._stones.pop(number, None)
        self._stones[number] = stone
        while len(self._stones) > self._max_entries:
            self._stones.popitem(last=False)

    def announced(self, early: Early) -> Failure | None:
        """A decode rank asks for the room: the reason why there is none, if prefill ended it.

        What the same rank ended before is over, for it began the number anew; so is what another one ended, unless
        both belong to one request.
        """
        stone = self._stones.get(early.number)
        if stone is None:
            return None
        if stone.remote:
            if early.destinations == 1 or stone.peer == early.peer.name:
                del self._stones[early.number]
            return None
        stone.told += 1
        if stone.told >= early.destinations:
            del self._stones[early.number]
        return stone.failure

    def opened(self, number: int) -> Stone | None:
        """Prefill opens the room: how decode has ended it, if so. Our own end of an earlier one is no news to us."""
        stone = self._stones.pop(number, None)
        return stone if stone is not None and stone.remote else None

    def drop(self, number: int) -> None:
        """Forget the room."""
        self._stones.pop(number, None)

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        while self._stones and next(iter(self._stones.values())).expires <= now:
            self._stones.popitem(last=False)

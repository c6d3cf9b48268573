"""Waits until the bytes of processes that wrote into this one's memory can't land any more, because the processes ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kv_core.contract.transport import PeerKey
from kv_core.runtime.process_proof import is_proven_dead

LOOK_S = 0.1
LOOKS_AFTER_DEATH = 20
"""What a dead process sent may still lie in a socket of this one, where a transport without FENCE reads it: its threads get
this many looks to do so, two seconds. Looks are counted, and not time, for a process that was itself stopped meanwhile has
not read anything either.
"""


class ProcessWatch:
    """Processes of peers that are suspected to be dead, and how often each was found so. One thread.

    ``tell`` is called with a peer's name once nothing of its process can land here any more.
    """

    def __init__(
        self, tell: Callable[[str], None], is_dead: Callable[[Mapping[str, object]], bool] = is_proven_dead
    ) -> None:
        self._tell = tell
        self._is_dead = is_dead
        self._watched: dict[str, tuple[Mapping[str, object], int]] = {}
        self._look_at = 0.0

    def add(self, peer: PeerKey, process: Mapping[str, object]) -> None:
        """Watch a process, as ``describe_process`` described it there. Again is once, whatever the session was."""
        self._watched.setdefault(peer.name, (process, 0))

    def wait_s(self, now: float, longest: float) -> float:
        """How long nothing has to be looked at, at most ``longest``."""
        return min(longest, max(0.0, self._look_at - now)) if self._watched else longest

    def look(self, now: float) -> None:
        """Look at all of them, if it is time."""
        if not self._watched or now < self._look_at:
            return
        self._look_at = now + LOOK_S
        for name, (process, seen) in list(self._watched.items()):
            if not self._is_dead(process):
                continue
            if seen < LOOKS_AFTER_DEATH:
                self._watched[name] = (process, seen + 1)
                continue
            del self._watched[name]
            self._tell(name)

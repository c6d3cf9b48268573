"""Transfers that failed and that their transport can't vouch for, to a process that is proven to have ended: quiescent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from kv_core.runtime.transfer.job import PeerState
from kv_core.runtime.transfer.outstanding import Outstanding

IsDead: TypeAlias = Callable[[Mapping[str, object]], bool]
LOOK_S = 0.25
LOOKS_AT_READS = 20
"""What a dead process had sent of what was read from it may still lie in a socket here: the transport gets so many looks to take it.
"""


class Deaths:
    """Looks now and then whether the peers of such transfers still live. Owner thread only.

    The proof is core's, not each transport's: what a dead process had for memory is gone with it, so that no byte can land
    there any more, whatever still lies in a socket or in an adapter's queue. Where it was read from, our own memory is what could
    be hit: by what it had sent, and that has been read, or is lost, after some looks. A transfer that has not failed is left
    to its transport, which will notice.
    """

    def __init__(
        self, outstanding: Outstanding, is_dead: IsDead, clock: Callable[[], float], *, reads: bool = False
    ) -> None:
        self._outstanding = outstanding
        self._is_dead = is_dead
        self._clock = clock
        self._look_at = 0.0
        self._looks = LOOKS_AT_READS if reads else 0
        self._seen: dict[PeerState, int] = {}  # how often each process was found dead

    def look(self) -> None:
        """Settle what is proven."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        dead: dict[PeerState, bool] = {}
        seen: dict[PeerState, int] = {}
        for posting in self._outstanding.unproven():
            peer = posting.job.peer
            if peer not in dead:
                dead[peer] = self._is_dead(peer.process)
                seen[peer] = self._seen.get(peer, 0) + 1 if dead[peer] else 0
            if dead[peer] and seen[peer] > self._looks:
                self._outstanding.settle(posting)
        self._seen = seen

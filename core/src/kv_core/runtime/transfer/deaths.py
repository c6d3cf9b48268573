"""Transfers that failed and that their transport can't vouch for, to a process that is proven to have ended: quiescent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from kv_core.runtime.transfer.job import PeerState
from kv_core.runtime.transfer.outstanding import Outstanding

IsDead: TypeAlias = Callable[[Mapping[str, object]], bool]
LOOK_S = 0.25


class Deaths:
    """Looks now and then whether the peers of such transfers still live. Owner thread only.

    The proof is core's, not each transport's: what a dead process had for memory is gone with it, so that no byte can land
    there any more, whatever still lies in a socket or in an adapter's queue. A transfer that has not failed is left to
    its transport, which will notice.
    """

    def __init__(self, outstanding: Outstanding, is_dead: IsDead, clock: Callable[[], float]) -> None:
        self._outstanding = outstanding
        self._is_dead = is_dead
        self._clock = clock
        self._look_at = 0.0

    def look(self) -> None:
        """Settle what is proven."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        dead: dict[PeerState, bool] = {}
        for posting in self._outstanding.unproven():
            peer = posting.job.peer
            if peer not in dead:
                dead[peer] = self._is_dead(peer.process)
            if dead[peer]:
                self._outstanding.settle(posting)

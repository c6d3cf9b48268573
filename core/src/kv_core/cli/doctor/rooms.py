"""Room numbers of doctors: those that a serving one keeps open, and those that nobody has."""

from __future__ import annotations

import secrets

FIRST = 0x6B76_0D0C_0000_0000
"""Far from what a router draws by chance, and the same for every doctor of this protocol."""
ROOMS = tuple(range(FIRST, FIRST + 8))
"""Kept open by ``kv-core doctor --serve``, so that as many visitors may come at once."""


def fresh_room() -> int:
    """A number that no engine and no other doctor uses: nobody opens a room for it."""
    return FIRST + 1024 + secrets.randbelow(2**40)

"""Memory registered with the agent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kv_core import MemoryKind, Region, RegistrationError
from kv_core.contract.transport import U64
from kv_nixl.engine import Engine

Key = tuple[MemoryKind, int, int, int]
"""Kind, device, address, length: what NIXL takes for one registration."""


def table(rows: Iterable[Sequence[int]], columns: int) -> U64:
    """Rows of addresses, lengths and so on as NIXL wants them: uint64, C order, shape (rows, columns)."""
    return np.array(list(rows), np.uint64).reshape(-1, columns)


class RegisteredMemory:
    """What is registered, each exact range once with the agent however often it was asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counts: Counter[Key] = Counter()
        self._stained: set[Any] = set()  # segments of which a registration has failed

    def register(self, regions: Sequence[Region]) -> None:
        """All or none. Raises ``RegistrationError``."""
        keys = [_key(region) for region in regions]
        new = [key for key in dict.fromkeys(keys) if not self._counts[key]]
        done: list[list[Key]] = []
        try:
            for group in _groups(new):
                self._call(self._engine.agent.registerMem, group)
                done.append(group)
        except self._engine.errors as error:
            self._stained.add(self._engine.segments[group[0][0]])
            for taken in done:
                self._call(self._engine.agent.deregisterMem, taken)
            position = keys.index(self._first_bad(group))
            kind, device, address, nbytes = keys[position]
            raise RegistrationError(
                f"NIXL can't register region {position} of pool {regions[position].pool!r}, {nbytes} bytes of {kind.value} "
                f"memory at {address:#x} on device {device}: {type(error).__name__} {error}. Is the address in that kind of "
                "memory, and is NIXL's build for the installed CUDA or ROCm?",
                region=position,
            ) from error
        self._counts.update(keys)

    def deregister(self, regions: Sequence[Region]) -> None:
        """Undo ``register``; unknown regions are ignored."""
        gone = []
        for region in regions:
            key = _key(region)
            if self._counts[key] == 1:
                gone.append(key)
            self._counts[key] -= 1
            if self._counts[key] <= 0:
                del self._counts[key]
        for group in _groups(gone):
            self._call(self._engine.agent.deregisterMem, group)

    def metadata(self) -> bytes:
        """The agent's metadata, for peers. NIXL leaves an empty section for a segment whose first registration failed, and a
        peer that tries to load such metadata can't load any of this agent any more: then only what is registered is told.
        """
        agent, segments = self._engine.agent, self._engine.segments
        present = {segments[key[0]] for key in self._counts}
        if self._stained <= present:
            return bytes(agent.getLocalMD())
        rows = self._rows(self._counts)  # all of one segment, for there are two, and the stained one is empty
        return bytes(
            agent.getLocalPartialMD(self._engine.lib.nixlRegDList(next(iter(present or self._stained)), rows), True, [])
        )

    def clear(self) -> None:
        """Deregister everything."""
        gone, self._counts = list(self._counts), Counter()
        for group in _groups(gone):
            self._call(self._engine.agent.deregisterMem, group)

    def _call(self, method: Any, group: Sequence[Key]) -> None:
        segment = self._engine.segments[group[0][0]]
        method(self._engine.lib.nixlRegDList(segment, self._rows(group)), [])

    @staticmethod
    def _rows(keys: Iterable[Key]) -> U64:
        return table(((address, nbytes, device) for _, device, address, nbytes in keys), 3)

    def _first_bad(self, group: Sequence[Key]) -> Key:
        """NIXL does not say which one it did not take."""
        for key in group:
            try:
                self._call(self._engine.agent.registerMem, [key])
            except self._engine.errors:
                return key
            self._call(self._engine.agent.deregisterMem, [key])
        return group[0]


def _key(region: Region) -> Key:
    return (region.kind, region.device_id, region.address, region.nbytes)


def _groups(keys: Sequence[Key]) -> list[list[Key]]:
    kinds = dict.fromkeys(key[0] for key in keys)
    return [[key for key in keys if key[0] is kind] for kind in kinds]

"""A rank's memory, real bytes: cut out of the model of ``core.tests.layout.topologies``, poison wherever nothing may be.

All buffers lie in one arena, with a guard around each, so that one comparison sees everything: spare pages, other rows, what
lies behind a buffer. The bytes of the model are never poison, and differ from generation to generation: what a room that is
over writes later is not what the next one wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.tests.layout.topologies.model import POISON, Case
from core.tests.layout.topologies.world import Held, World, topology
from kv_core import KVArgs, Pool, Role

SPARE_BYTE, POISON_BYTE = 0xFE, 0xFF
"""What a source has where no content is, and a destination: neither is a byte of content."""
CONTENT = 250
GUARD_BYTES = 64
OPAQUE = "opaque"
WINDOW = "window"


def content(numbers: np.ndarray, generation: int, blank: int) -> np.ndarray:
    """A byte between 1 and ``CONTENT`` for each number of the model, ``blank`` where there is none."""
    mixed = (numbers.astype(np.uint64) + np.uint64(generation << 32)) * np.uint64(0x9E3779B97F4A7C15)
    found = ((mixed >> np.uint64(40)) % np.uint64(CONTENT)).astype(np.uint8) + np.uint8(1)
    return np.where(numbers == POISON, np.uint8(blank), found)


@dataclass(frozen=True)
class Count:
    """What a comparison found, in bytes. ``wanted``: those of the model that belong here. ``wrong``: what is not as it must be,
    of which ``missing`` are still poison, and ``strays`` lie where nothing may be written.
    """

    wanted: int
    written: int
    wrong: int
    missing: int
    strays: int


class RankMemory:
    """One rank of a case. ``args``: the engine's description; ``pools``: of the state pools, those that the rank has.

    ``held``, ``window``: pages of the prompt; ``slot``: item of the state of requests, and the auxiliary row. Page numbers
    are drawn by the case's seed and the rank's place.
    """

    def __init__(self, case: Case, role: Role, ranks: Sequence[int], pools: Sequence[str]) -> None:
        self.case = case
        self.role = role
        self.side = case.source if role is Role.PREFILL else case.destination
        self.place = topology(tuple(ranks), self.side)
        most = max(side[-1].stop for side in case.stages)  # decode may have layers that prefill lacks: that is refused
        self._world = World(case if most == case.layers else replace(case, stages=((range(most),), case.stages[1])))
        which = int(role is Role.DECODE)
        self._world.rng = np.random.default_rng([case.seed, which, *ranks])
        rank = self._world.rank(which, self.place)
        self.held, self.window, self.slot = rank.kv, rank.window, rank.slot
        self.layers = case.stages[which][self.place.pp_rank]
        args, numbers = self._cut(pools)
        offsets = np.cumsum([GUARD_BYTES, *(part.size + GUARD_BYTES for part in numbers)])[:-1]
        self._numbers = np.full(sum(part.size + GUARD_BYTES for part in numbers) + GUARD_BYTES, POISON, np.uint32)
        for offset, part in zip(offsets, numbers, strict=True):
            self._numbers[offset : offset + part.size] = part.ravel()
        self.arena = np.zeros(self._numbers.size, np.uint8)
        self.expected = self.arena.copy()
        self.fill(0)
        addresses = iter((offsets + self.arena.ctypes.data).tolist())
        self.args: KVArgs = replace(
            args, kv=_moved(args.kv, addresses), states=tuple(_moved(pool, addresses) for pool in args.states),
            aux=None if args.aux is None else _moved(args.aux, addresses), model="model", kv_layout=self.side.order,
            extra={"speculative": "one"},
        )  # fmt: skip

    def _cut(self, pools: Sequence[str]) -> tuple[KVArgs, list[np.ndarray]]:
        """The description, and what each buffer must hold in the end."""
        world, decode = self._world, self.role is Role.DECODE
        args, contents = world._memory(
            self.side, self.place, self.layers, self.held, self.window, self.slot, wanted=decode
        )
        kept: list[np.ndarray] = []
        parts = iter(contents)
        for pool in args.pools():
            mine = [next(parts) for _ in pool.buffers]
            kept += mine if pool in (args.kv, args.aux) or pool.name in pools else []
        return replace(args, states=tuple(pool for pool in args.states if pool.name in pools)), kept

    def fill(self, generation: int) -> None:
        """Begin anew: content in a source, poison in a destination. Nothing may be under way."""
        blank = POISON_BYTE if self.role is Role.DECODE else SPARE_BYTE
        self.expected[:] = content(self._numbers, generation, blank)
        self.arena[:] = blank if self.role is Role.DECODE else self.expected

    def count(self, *, served: bool) -> Count:
        """Compare every byte. ``served``: a room has gone well here; else a destination must be nothing but poison."""
        blank = POISON_BYTE if self.role is Role.DECODE else SPARE_BYTE
        wanted = self._numbers != POISON
        if not served and self.role is Role.DECODE:
            wanted = np.zeros_like(wanted)
        written = self.arena != blank
        wrong = np.where(wanted, self.arena != self.expected, written)
        return Count(
            int(wanted.sum()), int(written.sum()), int(wrong.sum()), int((wanted & ~written).sum()), int((written & ~wanted).sum())
        )  # fmt: skip

    def state_items(self) -> dict[str, np.ndarray]:
        """Of each state pool, the items that a room names."""
        slot = np.array([self.slot], np.uint64)
        return {pool.name: self.window.pages if pool.name == WINDOW else slot for pool in self.args.states}

    def pages_from(self, position: int) -> np.ndarray:
        """Pages of the prompt from a position on, counted in this side's pages."""
        held: Held = self.held
        return held.pages[held.positions >= position]


def _moved(pool: Pool, addresses: object) -> Pool:
    return replace(pool, buffers=tuple(replace(buffer, address=next(addresses)) for buffer in pool.buffers))  # type: ignore[call-overload]

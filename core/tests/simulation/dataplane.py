"""How bytes move: apart from control messages, in bursts, with every way to fail that a fabric has."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from core.tests.simulation.memory import LAYERS, NO_LAYER, SIZES, Content
from core.tests.simulation.scenario import TRANSFER_CAUSES
from kv_core.protocol import effects as fx
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.messages import ChunkDigest
from kv_core.protocol.prefill import PrefillMachine

if TYPE_CHECKING:
    from core.tests.simulation.handles import Handle
    from core.tests.simulation.processes import Process
    from core.tests.simulation.world import World

GARBLED: Content = (-1, "garbled", 0, 0)


class Unit(NamedTuple):
    """One item of one pool on one layer."""

    pool: str
    layer: int
    local: int
    remote: int


class Motion:
    """One submitted transfer."""

    __slots__ = ("bursts", "captured", "chunk", "failed", "garble", "handle", "kind", "left", "lost", "result", "stuck")

    def __init__(self, chunk: TransferKVChunk, handle: Handle, kind: str | None) -> None:
        self.chunk = chunk
        self.handle = handle
        self.kind = kind
        self.bursts: list[list[Unit]] = []
        self.left = 0  # bursts that may still land
        self.stuck = False  # some bursts land only when something happens
        self.failed = False  # a failure has been reported
        self.lost = False  # some bursts went nowhere
        self.garble = kind == "corrupt"
        self.captured: list[list[Content]] | None = None  # what the network card still holds of a dead process
        self.result: ChunkResult | None = None


class DataPlane:
    """The transfer queue and the transport of one process."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._rng = world.rng
        self._frozen: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.motions: dict[Motion, None] = {}  # not yet reported quiescent

    @property
    def quiescent(self) -> bool:
        """Whether nothing of ours can land any more."""
        return not self.motions

    # -- the queue -------------------------------------------------------------------------------------------------

    def submit(self, effect: fx.SubmitChunk) -> None:
        """Queue a chunk."""
        delay = self._rng.choice((0.0, 0.001, 0.3 * self._rng.random()))
        self._world.clock.after(delay, self._take, effect.chunk)

    def _asleep(self, action: Callable[..., None], *args: Any) -> bool:
        """The process (or its transfer thread) stands still: do it later."""
        if self._process.paused or self._process.stalled_at is not None:
            self._frozen.append((action, args))
            return True
        return False

    def thaw(self) -> None:
        """The process goes on: so does what stood still in it."""
        frozen, self._frozen = self._frozen, []
        for action, args in frozen:
            self._world.clock.after(0.2 * self._rng.random(), action, *args)

    def _take(self, chunk: TransferKVChunk) -> None:
        process = self._process
        if not process.alive or self._asleep(self._take, chunk):
            return
        if chunk.ready is not None and not chunk.room.ended and not chunk.ready.query():
            self._world.clock.after(0.25, self._take, chunk)
            return
        claimed, effects = process.ledger.claim_chunk(chunk, self._world.clock.now)
        process.finish(f"claim -> {claimed}", (chunk.room.number, chunk.link.life), effects)
        if claimed and process.ledger.moves:
            self._launch(chunk)
        elif claimed:
            self._world.clock.after(self._rng.choice((0.001, 0.2 * self._rng.random())), self._offer, chunk)

    def _offer(self, chunk: TransferKVChunk) -> None:
        """Pull, prefill: the source has been hashed, decode may read it."""
        process, machine = self._process, self._process.prefill
        if not process.alive or self._asleep(self._offer, chunk):
            return
        handle = self._world.handle_of[process.name, chunk.room.life]
        units = self._units(chunk)
        for unit in units:
            self._read(handle, unit)
        result = self._result(chunk, handle, len(units))
        if units:
            process.call("readable", machine.chunk_readable, chunk, result.digest, result.aux_rows)
        else:
            process.call("chunk landed", machine.chunk_landed, chunk, result)

    # -- transfers -------------------------------------------------------------------------------------------------

    def _launch(self, chunk: TransferKVChunk) -> None:
        rng, after = self._rng, self._world.clock.after
        handle = source = self._world.handle_of[self._process.name, chunk.room.life]
        if chunk.pulled:
            source = self._world.handle_of[chunk.peer.name, chunk.link.source_life]
        units = self._units(chunk)
        rng.shuffle(units)
        motion = Motion(chunk, handle, self._cause(source, bool(units)))
        self.motions[motion] = None
        count = max(1, min(len(units), rng.choice((1, 1, 2, 3))))
        motion.bursts = [units[i::count] for i in range(count)]
        pace = 0.1 if self._world.over else rng.choice((0.002, 0.1, 0.5, 2.5))
        landing = list(motion.bursts)
        if motion.kind == "fail_quiet":
            landing = landing[: rng.randrange(len(landing) + 1)]
        elif motion.kind == "fail_loud":
            pace = rng.choice((0.3, 2.0))
            after(0.3 * rng.random(), self._fail_loud, motion)
        elif motion.kind == "pending":
            motion.stuck = True
            landing = landing[: rng.randrange(len(landing))]
            after(0.5, self._watch_stuck, motion, motion.bursts[len(landing) :])
        motion.left = len(landing)
        for burst in landing:
            after(pace * rng.random(), self._land, motion, burst)
        if not landing:
            self._maybe_over(motion)

    def _cause(self, handle: Handle, moves: bool) -> str | None:
        for i, cause in enumerate(handle.request.causes):
            if cause.kind in TRANSFER_CAUSES and cause.rank == handle.index and i not in handle.applied:
                if cause.kind == "never_ready" or (cause.kind == "corrupt" and not moves):
                    continue
                handle.applied.add(i)
                return cause.kind
        return None

    def _units(self, chunk: TransferKVChunk) -> list[Unit]:
        local, remote = chunk.local, chunk.remote
        if chunk.pulled:
            local = local[chunk.start : chunk.start + remote.size]
        else:
            remote = remote[chunk.start : chunk.start + local.size]
        if local.size != remote.size:
            self._world.referee.broken("I3 release", f"a chunk of {local.size} pages for {remote.size}")
        layers = [layer for layer in LAYERS if chunk.layers is None or layer in chunk.layers]
        pairs = list(zip(local.tolist(), remote.tolist(), strict=True))
        units = [Unit("kv", layer, a, b) for layer in layers for a, b in pairs]
        for pool, (_, local, remote) in chunk.states.items():
            units += [Unit(pool, NO_LAYER, a, b) for a, b in zip(local.tolist(), remote.tolist(), strict=True)]
        if chunk.aux is not None and not self._world.scenario.aux_inline:
            units.append(Unit("aux", NO_LAYER, *chunk.aux))
        return units

    def _fail_loud(self, motion: Motion) -> None:
        if not self._process.alive or self._asleep(self._fail_loud, motion):
            return
        if not motion.failed and motion in self.motions:
            self._failed(motion, "the fabric reported an error", quiescent=False)
            self._maybe_over(motion)

    def _failed(self, motion: Motion, text: str, *, quiescent: bool) -> None:
        motion.failed = True
        machine, now = self._process.ledger, self._world.clock.now
        effects = machine.chunk_failed(motion.chunk, text, now, quiescent=quiescent)
        if quiescent:
            del self.motions[motion]
        chunk = motion.chunk
        self._process.finish("chunk failed", (chunk.room.number, chunk.link.life, text, quiescent), effects)

    def _land(self, motion: Motion, burst: list[Unit]) -> None:
        process, world = self._process, self._world
        if process.alive:
            if process.paused and world.scenario.software:
                self._frozen.append((self._land, (motion, burst)))
                return
            target = world.processes[motion.chunk.peer.name].slot
            if world.network.is_cut(process.slot, target):
                world.clock.after(0.4, self._land, motion, burst)
                return
            if motion.chunk.pulled:
                self._fetch(motion, burst)
                return
            contents = [self._read(motion.handle, unit) for unit in burst]
        else:
            if motion.captured is None or world.clock.now > process.died_at + world.GRACE_S:
                return
            contents = motion.captured[motion.bursts.index(burst)]
        if motion.garble:
            contents[self._rng.randrange(len(contents))] = GARBLED
        self._write(motion, burst, contents)
        motion.left -= 1
        if process.alive:
            self._maybe_over(motion)

    def _fetch(self, motion: Motion, burst: list[Unit]) -> None:
        """Pull: the burst is read at its source now, and lands here a moment later."""
        world, chunk = self._world, motion.chunk
        source = world.processes[chunk.peer.name]
        if source.paused and world.scenario.software:
            world.clock.after(0.4, self._land, motion, burst)
            return
        contents: list[Content] = []
        if source.alive and source.fenced.get(self._process.name, 0) < chunk.peer.generation:
            handle = world.handle_of[source.name, chunk.link.source_life]
            contents = [source.data.lend(handle, unit) for unit in burst]
        world.clock.after(0.05 * self._rng.random(), self._put, motion, burst, contents)

    def lend(self, handle: Handle, unit: Unit) -> Content:
        """What a peer reads here."""
        return self._read(handle, Unit(unit.pool, unit.layer, unit.remote, unit.local))

    def _put(self, motion: Motion, burst: list[Unit], contents: list[Content]) -> None:
        if not self._process.alive:
            return
        if not contents:
            motion.lost = True
        elif motion.garble:
            contents[self._rng.randrange(len(contents))] = GARBLED
        handle, memory = motion.handle, self._process.memory
        part = self._world.processes[motion.chunk.peer.name].slot.rank
        for unit, content in zip(burst, contents, strict=False):
            owner = memory.owner.get((unit.pool, unit.local))
            if owner is not handle or handle.room.release_safe:
                self._world.referee.broken(
                    "I3 release", f"{unit} landed for {handle} after release; its owner is {owner}"
                )
            memory.cells[unit.pool, unit.local, unit.layer, part] = content
        motion.left -= 1
        self._maybe_over(motion)

    def _read(self, handle: Handle, unit: Unit) -> Content:
        memory = self._process.memory
        owner = memory.owner.get((unit.pool, unit.local))
        if owner is not handle or handle.room.release_safe:
            self._world.referee.broken(
                "I3 release", f"{unit} was read for {handle} after release; its owner is {owner}"
            )  # fmt: skip
        return (handle.uid, unit.pool, handle.positions[unit.pool, unit.local], unit.layer)

    def _write(self, motion: Motion, burst: list[Unit], contents: list[Content]) -> None:
        peer, life = motion.chunk.peer, motion.chunk.link.life
        target = self._world.processes[peer.name]
        if not target.alive or target.fenced.get(self._process.name, 0) >= peer.generation:
            motion.lost = True
            return
        handle = self._world.handle_of[peer.name, life]
        part = self._process.slot.rank
        for unit, content in zip(burst, contents, strict=True):
            owner = target.memory.owner.get((unit.pool, unit.remote))
            if unit.remote >= SIZES[unit.pool] or owner is not handle or handle.room.release_safe:
                self._world.referee.broken(
                    "I3 release", f"{unit} of {motion.handle} landed for {handle} after release; its owner is {owner}"
                )
            target.memory.cells[unit.pool, unit.remote, unit.layer, part] = content

    def _maybe_over(self, motion: Motion) -> None:
        if motion.left == 0 and not motion.stuck and (motion.kind != "fail_loud" or motion.failed):
            self._world.clock.after(self._rng.choice((0.001, 0.2 * self._rng.random())), self._over, motion)

    def _over(self, motion: Motion) -> None:
        """Nothing of the transfer can land any more: tell the machine."""
        if not self._process.alive or motion not in self.motions or self._asleep(self._over, motion):
            return
        chunk = motion.chunk
        if motion.failed:
            del self.motions[motion]
            self._process.call("chunk quiescent", self._process.ledger.chunk_quiescent, chunk)
        elif motion.lost or motion.kind in {"fail_quiet", "pending"}:
            self._failed(motion, "the transfer failed", quiescent=True)
        else:
            del self.motions[motion]
            count, machine = sum(map(len, motion.bursts)), self._process.machine
            result = self._result(chunk, motion.handle, count)
            assert isinstance(machine, PrefillMachine | DecodeMachine)
            self._process.call("chunk landed", machine.chunk_landed, chunk, result)

    def _result(self, chunk: TransferKVChunk, handle: Handle, count: int) -> ChunkResult:
        now = self._world.clock.now
        if chunk.pulled:
            return ChunkResult(count, now - 0.01, now)
        rows: tuple[bytes, ...] = ()
        if chunk.aux is not None and self._world.scenario.aux_inline:
            rows = (b"%d" % handle.uid,)
        digest = None
        if chunk.digest:
            first, stop = (chunk.layers.start, chunk.layers.stop) if chunk.layers is not None else (LAYERS[0], LAYERS[-1] + 1)  # fmt: skip
            states = {pool: (start, int(local.size)) for pool, (start, local, _) in chunk.states.items()}
            kv = [
                (handle.uid, "kv", chunk.start + i, layer) for layer in range(first, stop) for i in range(chunk.local.size)
            ]  # fmt: skip
            kv += [(handle.uid, p, s + i, NO_LAYER) for p, (s, n) in sorted(states.items()) for i in range(n)]
            aux = chunk.aux is not None and not rows
            kv += [(handle.uid, "aux", 0, NO_LAYER)] * aux
            digest = ChunkDigest(chunk.start, chunk.local.size, first, stop, states, aux, checksum(kv))
        return ChunkResult(count, now - 0.01, now, "core", digest, rows)

    # -- what ends stuck transfers ---------------------------------------------------------------------------------

    def _watch_stuck(self, motion: Motion, rest: list[list[Unit]]) -> None:
        """Runs while the transfer hangs: cancelled when its room has ended, if the fabric can do that."""
        process, world = self._process, self._world
        if not process.alive or motion not in self.motions or self._asleep(self._watch_stuck, motion, rest):
            return
        target = world.processes[motion.chunk.peer.name]
        cancelled = world.scenario.cancel and motion.chunk.room.ended
        if cancelled or not target.alive or world.unstick(motion):
            motion.stuck = False
            landing = rest[: self._rng.randrange(len(rest) + 1)]
            motion.left += len(landing)
            for burst in landing:
                world.clock.after(0.3 * self._rng.random(), self._land, motion, burst)
            self._maybe_over(motion)
        else:
            world.clock.after(0.5, self._watch_stuck, motion, rest)

    def die(self) -> None:
        """The process is gone: bursts that the network card has already may land within the grace time."""
        for motion in self.motions:
            if motion.chunk.pulled or self._world.scenario.software or self._rng.random() < 0.5:
                continue  # what a dead process reads harms nobody
            released = motion.handle.room.release_safe
            if not released:
                motion.captured = [[self._read(motion.handle, unit) for unit in burst] for burst in motion.bursts]

    # -- the decode side -------------------------------------------------------------------------------------------

    def verify(self, effect: fx.VerifyDigests) -> None:
        """Queue the hashing of what has arrived."""
        self._world.clock.after(0.3 * self._rng.random(), self._begin_verify, effect)

    def _begin_verify(self, effect: fx.VerifyDigests) -> None:
        if self._process.alive and not self._asleep(self._begin_verify, effect):
            self._world.clock.after(0.1 * self._rng.random(), self._verify, effect, effect.room.ended)

    def _verify(self, effect: fx.VerifyDigests, skip: bool) -> None:
        process = self._process
        if not process.alive or self._asleep(self._verify, effect, skip):
            return
        handle = self._world.handle_of[process.name, effect.room.life]
        part = self._world.processes[effect.link.peer.name].slot.rank
        problem = "the room has ended" if skip else self._compare(effect, part)
        if not skip:
            for row in effect.aux_rows:
                self._write_aux(handle, part, row)
        process.call("verified", process.decode.on_verified, effect.room, effect.link, problem)

    def _write_aux(self, handle: Handle, part: int, row: bytes) -> None:
        (item,) = handle.pages["aux"].tolist()
        if self._process.memory.owner.get(("aux", item)) is not handle or handle.room.release_safe:
            self._world.referee.broken("I3 release", f"the auxiliary row {item} of {handle} was written after release")
        self._process.memory.cells["aux", item, NO_LAYER, part] = (int(row), "aux", 0, NO_LAYER)

    def _compare(self, effect: fx.VerifyDigests, part: int) -> str | None:
        offer, cells = effect.room.offer, self._process.memory.cells
        assert offer is not None
        for d in effect.digests:
            pages = offer.kv[d.start : d.start + d.count].tolist()
            found = [cells.get(("kv", p, layer, part)) for layer in range(d.first_layer, d.stop_layer) for p in pages]
            for pool, (start, count) in sorted(d.states.items()):
                found += [
                    cells.get((pool, p, NO_LAYER, part)) for p in offer.states[pool][start : start + count].tolist()
                ]
            found += [cells.get(("aux", offer.aux_index or 0, NO_LAYER, part))] * d.aux
            if checksum(found) != d.digest:
                return f"the digest of pages {d.start} to {d.start + d.count} differs"
        return None


def checksum(contents: object) -> int:
    """A digest of what stands in some pages."""
    return zlib.crc32(repr(contents).encode())

"""What engines do: open, announce, send, poll, clear; in any order, and also what they should not do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from core.tests.simulation.handles import Handle
from core.tests.simulation.memory import SIZES, U64
from core.tests.simulation.scenario import TIMED, Cause, Request, Send
from kv_core.contract.enums import KVPoll, Role
from kv_core.protocol import effects as fx
from kv_core.protocol.rooms import Offer

if TYPE_CHECKING:
    from core.tests.simulation.clock import Clock
    from core.tests.simulation.processes import Process, Slot
    from core.tests.simulation.world import World

EMPTY: U64 = np.empty(0, np.uint64)
BAD_NUMBERS = (-1, -(2**70), 2**63, 2**64, 2**200, True, None, "17", 1.0)


class ReadyAt:
    """Ready from some time on."""

    def __init__(self, clock: Clock, when: float) -> None:
        self._clock = clock
        self._when = when

    def query(self) -> bool:
        """See ``Ready``."""
        return self._clock.now >= self._when


class Engine:
    """Plays all requests on both sides."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._uids = 0
        self._clock = world.clock
        self.pending = 0  # openings that are still to come
        self.stopped = False
        self.handles: list[Handle] = []

    # -- opening ---------------------------------------------------------------------------------------------------

    def schedule(self, request: Request, *, base: float) -> None:
        """Both sides will open the request."""
        kinds = {cause.kind for cause in request.causes}
        scenario = self._world.scenario
        if "prefill_never_opens" not in kinds:
            for rank in range(scenario.ranks):
                self._later(base + request.prefill_open, "prefill", rank, request)
        if "decode_never_opens" not in kinds:
            for index in range(scenario.destinations):
                self._later(base + request.decode_open, "decode", index, request)

    def _later(self, when: float, side: str, index: int, request: Request) -> None:
        self.pending += 1
        self._clock.at(when, self._open, side, index, request)

    def slot(self, side: str, index: int, request: Request) -> Slot:
        """Where this side of the request runs."""
        world = self._world
        if side == "prefill":
            return world.slots[f"P{request.instance * world.scenario.ranks + index}"]
        return world.slots[f"D{request.group * world.scenario.destinations + index}"]

    def _open(self, side: str, index: int, request: Request) -> None:
        self.pending -= 1
        process = self.slot(side, index, request).process
        if process is not None and process.alive and not self.stopped:
            process.call("open", self._do_open, process, side, index, request, request.number)

    def _do_open(
        self, process: Process, side: str, index: int, request: Request, number: Any, now: float
    ) -> list[fx.Effect]:  # fmt: skip
        if process.closing:
            return []
        self._uids += 1
        handle = Handle(self._uids, side, index, process, request)
        odd = number != request.number or isinstance(number, bool)
        live = process.machine.table.get(request.number)
        handle.duplicate = odd or live is not None
        if not handle.duplicate:
            self._allocate(handle)
        machine = process.prefill if side == "prefill" else process.decode
        handle.room, effects = machine.open(number, self._world.addr_of(request), now)
        self.handles.append(handle)
        self._world.watch(handle)
        if not handle.duplicate:
            self._begin(handle)
        return effects

    def _allocate(self, handle: Handle) -> None:
        request, memory = handle.request, handle.process.memory
        extra = handle.side == "prefill" and any(cause.kind == "bad_states" for cause in request.causes)
        wanted = {"kv": request.pages, "mamba": request.states + extra, "aux": int(request.aux)}
        for pool, count in wanted.items():
            handle.pages[pool] = items = memory.take(pool, count, handle)
            for position, item in enumerate(items.tolist()):
                handle.positions[pool, item] = position

    def free(self, handle: Handle) -> None:
        """The room's pages may go: they do, at once."""
        for pool, items in handle.pages.items():
            handle.process.memory.give_back(pool, items)

    # -- what each side does with a room ---------------------------------------------------------------------------

    def _begin(self, handle: Handle) -> None:
        request, after = handle.request, self._clock.after
        for i, cause in enumerate(request.causes):
            mine = cause.kind in TIMED and cause.kind.endswith(handle.side) and cause.rank == handle.index
            if mine and cause.poll is None:
                after(cause.delay, self._break, handle, i, cause)
        if handle.index == 0:
            for side, what, delay in request.oddities:
                if side == handle.side:
                    after(delay, self._odd, handle, what)
        if handle.side == "decode":
            after(0.01 * self._rng.random(), self._init_decode, handle)
        elif request.init_early or self._has(handle, "send_before_init", "negative_count"):
            after(0.01 * self._rng.random(), self._init_prefill, handle)

    def _has(self, handle: Handle, *kinds: str) -> bool:
        for i, cause in enumerate(handle.request.causes):
            if cause.kind in kinds and cause.rank == handle.index:
                handle.applied.add(i)
                return True
        return False

    def _odd(self, handle: Handle, what: str) -> None:
        process = handle.process
        if what == "bad number":
            process.call("open", self._do_open, process, handle.side, 0, handle.request, self._rng.choice(BAD_NUMBERS))
        elif handle.request.number in process.machine.table:
            process.call("open", self._do_open, process, handle.side, 0, handle.request, handle.request.number)

    def _break(self, handle: Handle, i: int, cause: Cause) -> None:
        process = handle.process
        if not handle.cleared and process.alive:
            process.call(cause.kind, self._do_break, handle, i, cause)

    def _do_break(self, handle: Handle, i: int, cause: Cause, now: float) -> list[fx.Effect]:
        if not handle.room.ended:
            handle.applied.add(i)
        if cause.kind.startswith("abort"):
            return handle.process.machine.abort(handle.room, f"engine {handle.uid} is fed up", now)
        return self._do_clear(handle, now)

    def react(self, handle: Handle, poll: KVPoll) -> None:
        """The engine has polled and seen something new."""
        if handle.cleared or not handle.process.alive or handle.duplicate:
            return
        request, after = handle.request, self._clock.after
        for i, cause in enumerate(request.causes):
            mine = cause.kind in TIMED and cause.kind.endswith(handle.side) and cause.rank == handle.index
            if mine and cause.poll is poll:
                after(cause.delay, self._break, handle, i, cause)
        if poll.terminal:
            after(request.clear_delay, self.clear, handle)
        elif handle.side == "prefill":
            self._init_prefill(handle)
        elif poll is KVPoll.WaitingForInput:
            after(request.offer_delay, self._offer, handle)

    def clear(self, handle: Handle) -> None:
        """The engine has seen the end of the room."""
        if not handle.cleared:
            handle.process.call("clear", self._do_clear, handle)

    def _do_clear(self, handle: Handle, now: float) -> list[fx.Effect]:
        handle.cleared = True
        effects = handle.process.machine.clear(handle.room, now)
        self._follow(handle)
        return effects

    def _follow(self, handle: Handle) -> None:
        request = handle.request
        follower = request.follower
        if follower is None or self.stopped or handle.duplicate:
            return
        now = self._clock.now
        if not request.polite:
            open_at = follower.prefill_open if handle.side == "prefill" else follower.decode_open
            self._later(now + 0.1 * open_at, handle.side, handle.index, follower)
            return
        mine = [each for each in self.handles if each.request is request and not each.duplicate]
        expected = self._world.scenario.ranks + self._world.scenario.destinations
        if len(mine) == expected and all(each.cleared for each in mine):
            request.follower = None
            if not all(each.room.links for each in mine):
                follower.tainted = "one side never heard of the first opening, and may take the second for it"
            self.schedule(follower, base=now)

    def give_up(self) -> None:
        """No more openings; decode rooms that nobody claims are aborted. The rest has to end by itself."""
        self.stopped = True
        for handle in self.handles:
            if handle.side == "decode" and handle.process.alive and handle.final is None and not handle.offered:
                handle.gave_up = True
                handle.process.call(
                    "give up", handle.process.machine.abort, handle.room, f"engine {handle.uid} gives up"
                )

    def freshly(self) -> list[Request]:
        """One more request between any two that live: whatever happened before, it has to succeed."""
        world = self._world
        self.stopped = False
        fresh: list[Request] = []
        for instance in range(world.scenario.instances):
            for group in range(world.scenario.groups):
                request = Request(
                    1_000 + len(fresh), 2**62 + len(fresh), instance, group, 1, 0, 0, False, [Send(1, None)], 0.0, 0.0,
                    True, True, 0.0, 0.0, 0.0, 0.0,
                )  # fmt: skip
                slots = [self.slot("prefill", i, request) for i in range(world.scenario.ranks)]
                slots += [self.slot("decode", i, request) for i in range(world.scenario.destinations)]
                odd = any(world.scenario.stranger == s.index and s.role is Role.DECODE for s in slots)
                if all(s.process is not None and s.process.alive and not s.process.closing for s in slots) and not odd:
                    self.schedule(request, base=self._clock.now + 0.05 * self._rng.random())
                    fresh.append(request)
        return fresh

    # -- prefill ---------------------------------------------------------------------------------------------------

    def _init_prefill(self, handle: Handle) -> None:
        if handle.started or handle.cleared or self._has(handle, "never_inits"):
            return
        handle.started = True
        process, machine, request = handle.process, handle.process.prefill, handle.request
        count = request.pages
        if self._has(handle, "wrong_count"):
            count += 1 if count == 0 or self._rng.random() < 0.5 else -1
        if self._has(handle, "negative_count"):
            count = -self._rng.choice((1, 2**63))
        row = int(handle.pages["aux"][0]) if request.aux else None
        if self._has(handle, "send_before_init"):
            process.call("send", machine.send, handle.room, handle.pages["kv"], {}, None, None)
        process.call("init", machine.init, handle.room, count, row)
        if self._has(handle, "init_twice_prefill"):
            process.call("init", machine.init, handle.room, count, row)
        if not self._has(handle, "never_sends"):
            self._clock.after(request.send_delay, self._send, handle)

    def _send(self, handle: Handle) -> None:
        if handle.cleared or not handle.process.alive:
            return
        request, rng = handle.request, self._rng
        i, handle.sends = handle.sends, handle.sends + 1
        chunk, last = request.sends[i], i == len(request.sends) - 1
        if self._has(handle, "stops_midway") and (last or i > 0):
            return
        same = [s for s in request.sends[:i] if s.layers == chunk.layers]
        start = sum(s.pages for s in same)
        states = {"mamba": handle.pages["mamba"][: request.states]} if last and request.states else {}
        if last and self._has(handle, "bad_states"):
            states = {"mamba": handle.pages["mamba"]}
        ready = None
        if self._has(handle, "never_ready"):
            ready = ReadyAt(self._clock, 1e18)
        elif rng.random() < 0.2:
            ready = ReadyAt(self._clock, self._clock.now + rng.random())
        local = handle.pages["kv"][start : start + chunk.pages]
        process, machine = handle.process, handle.process.prefill
        process.call("send", machine.send, handle.room, local.copy(), states, chunk.layers, ready)
        if last and self._has(handle, "send_beyond"):
            process.call("send", machine.send, handle.room, local.copy(), {}, chunk.layers, None)
        if not last:
            self._clock.after(request.send_gap, self._send, handle)

    # -- decode ----------------------------------------------------------------------------------------------------

    def _init_decode(self, handle: Handle) -> None:
        if handle.cleared or not handle.process.alive:
            return
        process, machine = handle.process, handle.process.decode
        if self._has(handle, "offer_before_init"):
            process.call("offer", machine.offer, handle.room, self._make_offer(handle))
        process.call("init", machine.init, handle.room, 7 if self._has(handle, "bad_dp") else 0)
        if self._has(handle, "init_twice_decode"):
            process.call("init", machine.init, handle.room, 0)
        if handle.request.offer_early:
            self._offer(handle)

    def _make_offer(self, handle: Handle) -> Offer:
        request, pages = handle.request, handle.pages
        kv = pages["kv"]
        if self._has(handle, "out_of_range"):
            kv = np.append(kv[:-1], np.uint64(self._rng.choice((SIZES["kv"], 2**32, 2**64 - 1))))
        states = {"mamba": pages["mamba"]} if request.states else {}
        return Offer(kv, states, int(pages["aux"][0]) if request.aux else None, request.prefix)

    def _offer(self, handle: Handle) -> None:
        if handle.offered or handle.cleared or not handle.process.alive or self._has(handle, "never_offers"):
            return
        handle.offered = True
        process, machine = handle.process, handle.process.decode
        offer = self._make_offer(handle)
        process.call("offer", machine.offer, handle.room, offer)
        if self._has(handle, "offer_twice"):
            process.call("offer", machine.offer, handle.room, offer)

"""What must hold, after every step and at rest.

I1  A terminal state never changes, and is told exactly once.
I2  Success means that every byte is there: on the decode side by looking, on the prefill side because decode says so.
I3  No byte lands in pages, and none is read from pages by a process that lives, after ``release_safe`` said yes for them.
I4  Nothing outlives its life: at rest all tables are empty, but for pages whose proof is truly missing.
I5  Every room ends in bounded time.
I6  The first root cause stands, and both sides name the same one.
I7  A room that nothing happened to succeeds, whatever happens to others.
I8  A room's history is short and in order, begins with its opening, and ends with what ended it; off there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.tests.simulation.memory import LAYERS, NO_LAYER
from kv_core.contract.enums import FailureCode, KVPoll, Liveness
from kv_core.contract.moments import FAILED, MOMENTS, OPENED, PHASE, RELEASED
from kv_core.contract.records import PeerEvent, RoomEvent, RoomEventKind
from kv_core.protocol.lifecycle import Phase

if TYPE_CHECKING:
    from core.tests.simulation.handles import Handle
    from core.tests.simulation.processes import Process
    from core.tests.simulation.world import World

SLACK_S = 0.6
FOREVER = float("inf")


class InvariantBroken(Exception):
    """Something that must hold did not."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


class Referee:
    """Looks at every room of a process after each of its steps."""

    def __init__(self, world: World) -> None:
        self._world = world

    def broken(self, invariant: str, text: str) -> None:
        """Stop the schedule here."""
        raise InvariantBroken(invariant, f"{text} (at {self._world.clock.now:.4f})")

    # -- what machines tell ----------------------------------------------------------------------------------------

    def on_room(self, process: Process, event: RoomEvent) -> None:
        """An observer's view."""
        self._history(process, event)
        if event.kind is RoomEventKind.CONCLUDED:
            handle = self._world.handle_of[process.name, event.life]
            handle.concluded += 1
            if handle.concluded > 1:
                self.broken("I1 terminal", f"the end of {handle} was told {handle.concluded} times")
            if event.failure is not handle.room.failure or not event.state.terminal:
                self.broken("I1 terminal", f"the end of {handle} was told as {event}")
        elif event.kind is RoomEventKind.RELEASED:
            handle = self._world.handle_of[process.name, event.life]
            if not handle.room.release_safe or handle.released or handle.concluded != 1:
                self.broken("I1 terminal", f"the release of {handle} was told wrongly")

    def _history(self, process: Process, event: RoomEvent) -> None:
        history, size = event.history, process.settings.flight_recorder
        if not size or event.kind not in {RoomEventKind.CONCLUDED, RoomEventKind.RELEASED}:
            if history:
                self.broken("I8 history", f"{event} has a history")
            return
        whole = event.kind is RoomEventKind.CONCLUDED
        times = [moment[0] for moment in history]
        if not 1 <= len(history) <= size + 1 or times != sorted(times) or times[-1] != event.time_s:
            self.broken("I8 history", f"{event} is too long, not in order, or not at its end")
        if any(len(moment) != 2 + len(MOMENTS[moment[1]]) for moment in history):
            self.broken("I8 history", f"a moment of {event} has other values than its names say")
        last = (FAILED, event.failure.stage.value, event.failure.code.value) if event.failure else (PHASE, "success")
        wanted = last if whole else (RELEASED,)
        if history[-1][1 : 1 + len(wanted)] != wanted or (whole and history[0][1] != OPENED):
            self.broken("I8 history", f"{event} should begin with its opening and end with {wanted}")

    def on_peer(self, process: Process, event: PeerEvent) -> None:
        """A peer that is lost without a reason is a finding of its own."""
        if event.liveness is not Liveness.DEAD:
            return
        endpoint = event.peer.rpartition(" at ")[2]
        other = self._world.endpoints[endpoint]
        scenario = self._world.scenario
        if scenario.net.name == "clean" and scenario.stranger is None and not (process.slot.touched or other.touched):
            self.broken("I7 isolation", f"{process.name} lost {event.peer}: {event.reason}, but nothing happened")
        process.slot.touched = other.touched = True

    # -- after every step ------------------------------------------------------------------------------------------

    def after(self, process: Process) -> None:
        """Look at the rooms of a process."""
        now = self._world.clock.now
        gone = False
        for handle in process.handles:
            room = handle.room
            if room.phase is not handle.phase:
                handle.aborted_in = handle.phase
                handle.phase, handle.phase_since = room.phase, now
                handle.check_at = now
            if room.poll is not handle.poll:
                self._polled(handle)
            elif handle.final is not None:
                self._unchanged(handle)
            if room.release_safe is not handle.released:
                self._released(handle)
            if now >= handle.check_at and handle.final is None:
                self._in_time(handle, now)
            gone = gone or (handle.cleared and handle.released)
        if gone:
            process.handles = [each for each in process.handles if not (each.cleared and each.released)]

    def _polled(self, handle: Handle) -> None:
        room = handle.room
        if handle.final is not None:
            self.broken("I1 terminal", f"{handle} went on to {room.poll.name} with {room.failure}")
        before, handle.poll = handle.poll, room.poll
        if room.poll.terminal:
            handle.final = (room.poll, room.failure, room.metric)
            self._ended(handle)
        elif before is not None and room.poll < before:
            self.broken("I1 terminal", f"{handle} went back from {before.name}")
        if not handle.duplicate:
            self._world.clock.after(0.02 * self._world.rng.random(), self._world.engine.react, handle, room.poll)

    def _unchanged(self, handle: Handle) -> None:
        room = handle.room
        if handle.final is None:
            return
        poll, failure, metric = handle.final
        if room.poll is not poll or room.failure is not failure or room.metric is not metric:
            what = "I6 cause" if room.poll is poll else "I1 terminal"
            self.broken(what, f"{handle} ended as {poll.name} with {failure}, and is now {room.poll.name} with {room.failure}")  # fmt: skip

    def _released(self, handle: Handle) -> None:
        if handle.released or handle.final is None:
            self.broken("I1 terminal", f"release_safe of {handle} came too early or was taken back")
        handle.released = True
        self._world.engine.free(handle)

    def _ended(self, handle: Handle) -> None:
        if handle.concluded != 1:
            self.broken("I1 terminal", f"the end of {handle} was told {handle.concluded} times")
        poll, failure, _ = handle.final or (None, None, None)
        if (poll is KVPoll.Failed) is (failure is None):
            self.broken("I6 cause", f"{handle} ended as {poll} with {failure}")
        if handle.duplicate:
            self._refused(handle)
        elif poll is KVPoll.Success:
            self._complete(handle) if handle.side == "decode" else self._agreed(handle)

    def _refused(self, handle: Handle) -> None:
        failure = handle.room.failure
        if failure is None or failure.code not in {
            FailureCode.DUPLICATE_ROOM, FailureCode.INVALID_REQUEST, FailureCode.OVERLOADED, FailureCode.CLOSED,
        }:  # fmt: skip
            self.broken("I6 cause", f"a duplicate or impossible room ended with {failure}")

    # -- I2 --------------------------------------------------------------------------------------------------------

    def _complete(self, handle: Handle) -> None:
        """Every page that was offered holds what one prefill room sent for it, from every source."""
        cells, request = handle.process.memory.cells, handle.request
        for part in range(self._world.scenario.ranks):
            wanted = [("kv", i, layer) for i in range(request.pages) for layer in LAYERS]
            wanted += [("mamba", i, NO_LAYER) for i in range(request.states)]
            wanted += [("aux", 0, NO_LAYER)] * request.aux
            sources = set()
            for pool, position, layer in wanted:
                item = int(handle.pages[pool][position])
                found = cells.get((pool, item, layer, part))
                if found is None or found[1:] != (pool, position, layer):
                    self.broken("I2 success", f"{handle} succeeded, but {pool} {position} of layer {layer} holds {found}")  # fmt: skip
                assert found is not None
                sources.add(found[0])
            if len(sources) > 1 or any(self._world.engine.handles[s - 1].request.number != request.number for s in sources):  # fmt: skip
                self.broken("I2 success", f"{handle} succeeded with bytes of rooms {sources}")

    def _agreed(self, handle: Handle) -> None:
        if not handle.room.links:
            self.broken("I2 success", f"{handle} succeeded without a destination")
        for name, life in handle.room.links:
            other = self._world.handle_of[name, life]
            if other.final is None or other.final[0] is not KVPoll.Success:
                self.broken("I2 success", f"{handle} succeeded, but {other} did not")

    # -- I5 --------------------------------------------------------------------------------------------------------

    def resumed(self, process: Process) -> None:
        """A process that was stopped has not had its time."""
        for handle in process.handles:
            handle.phase_since = max(handle.phase_since, self._world.clock.now - 0.5)
            handle.check_at = self._world.clock.now + SLACK_S

    def _in_time(self, handle: Handle, now: float) -> None:
        limit = self._limit(handle) + SLACK_S + handle.process.late_s
        if now > limit:
            self.broken("I5 time", f"{handle} has been {handle.phase} since {handle.phase_since:.4f}, limit {limit:.4f}")  # fmt: skip
        handle.check_at = limit if limit < FOREVER else now + 1.0

    def _limit(self, handle: Handle) -> float:
        """When the room's phase must have ended. What the other side keeps alive is bounded at the end of the run."""
        s, since, room = handle.process.settings, handle.phase_since, handle.room
        phase = handle.phase
        if phase is Phase.OPEN:
            return FOREVER if handle.side == "prefill" and room.links else since + s.bootstrap_timeout_s
        if phase is Phase.CONFIRMING and self._world.scenario.ranks > 1:
            return FOREVER  # decode waits for the other ranks, and says so
        if phase in {Phase.VERIFYING, Phase.CONFIRMING}:
            return since + s.transferring_timeout_s
        if phase is Phase.OFFERED or (phase is Phase.READY and handle.side == "prefill"):
            return since + s.waiting_timeout_s
        if phase is Phase.MOVING and handle.side == "prefill":
            return max(since, room.last_move) + s.transferring_timeout_s
        return FOREVER

    def bury(self, handle: Handle) -> None:
        """Its process has died: nothing is expected of the room any more."""
        self._unchanged(handle)

    # -- at rest ---------------------------------------------------------------------------------------------------

    def last_words(self) -> None:
        """What every room ended as is still so."""
        for handle in self._world.engine.handles:
            if handle.final is not None:
                self._unchanged(handle)
                if handle.concluded != 1:
                    self.broken("I1 terminal", f"the end of {handle} was told {handle.concluded} times")


def describe(handle: Handle) -> dict[str, Any]:
    """For traces."""
    room = handle.room
    return {"handle": repr(handle), "phase": room.phase.value, "failure": str(room.failure), "safe": room.release_safe}

"""I4, I6 and I7: what is looked at once a schedule has come to rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.tests.simulation.scenario import Request
from kv_core.contract.enums import FailureCode, KVPoll, Role
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.lifecycle import Phase
from kv_core.protocol.machine import Machine
from kv_core.protocol.peers import PeerPhase
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.quiescence import Quiescence
from kv_core.protocol.rooms import RoomLink

if TYPE_CHECKING:
    from core.tests.simulation.handles import Handle
    from core.tests.simulation.processes import Process, Slot
    from core.tests.simulation.world import World

ABORTED = {FailureCode.ABORTED_LOCAL, FailureCode.ABORTED_REMOTE}
EXPECTED = {
    "abort_decode": ABORTED, "clear_decode": ABORTED, "abort_prefill": ABORTED, "clear_prefill": ABORTED,
    "out_of_range": {FailureCode.INVALID_REQUEST}, "init_twice_decode": {FailureCode.INVALID_REQUEST},
    "offer_before_init": {FailureCode.INVALID_REQUEST}, "offer_twice": {FailureCode.INVALID_REQUEST},
    "wrong_count": {FailureCode.INVALID_REQUEST}, "negative_count": {FailureCode.INVALID_REQUEST},
    "send_before_init": {FailureCode.INVALID_REQUEST}, "init_twice_prefill": {FailureCode.INVALID_REQUEST},
    "send_beyond": {FailureCode.INVALID_REQUEST}, "bad_states": {FailureCode.INVALID_REQUEST},
    "bad_dp": {FailureCode.INCOMPATIBLE}, "never_sends": {FailureCode.TIMEOUT}, "never_inits": {FailureCode.TIMEOUT},
    "stops_midway": {FailureCode.TIMEOUT}, "never_ready": {FailureCode.TIMEOUT},
    "pending": {FailureCode.TIMEOUT, FailureCode.TRANSPORT_ERROR},
    "decode_never_opens": {FailureCode.TIMEOUT}, "prefill_never_opens": {FailureCode.TIMEOUT, FailureCode.UNKNOWN_ROOM},
    "fail_quiet": {FailureCode.TRANSPORT_ERROR}, "fail_loud": {FailureCode.TRANSPORT_ERROR},
    "corrupt": {FailureCode.INTEGRITY},
}  # fmt: skip


FRESH = 1_000
"""Requests from this number on were made after all faults."""


class Inspector:
    """Looks at a world that has come to rest."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._broken = world.referee.broken

    def leaks(self) -> None:
        """I4."""
        for process in self._world.living():
            self._leaks(process)
            self._ledger_leaks(process, process.ledger)
            if process.slot.role is Role.PREFILL:
                self._prefill_leaks(process, process.prefill)
            else:
                self._decode_leaks(process, process.decode)

    def outcomes(self) -> None:
        """I6 and I7."""
        requests = {id(h.request): h.request for h in self._world.engine.handles}
        for request in requests.values():
            self._outcome(request)

    def succeeded(self, fresh: list[Request]) -> None:
        """Requests made after all faults, between processes that live."""
        for request in fresh:
            for handle in self._world.engine.handles:
                if handle.request is request and (handle.final is None or handle.final[0] is not KVPoll.Success):
                    self._broken(
                        "I7 isolation", f"all is well, but a new room ended as {handle}: {handle.room.failure}"
                    )

    # -- I4 --------------------------------------------------------------------------------------------------------

    def _leak(self, process: Process, what: object) -> None:
        self._broken("I4 leak", f"{process.name} still has {what}")

    def _leaks(self, process: Process) -> None:
        machine = process.machine
        if machine.table:
            self._leak(process, f"rooms {machine.table}")
        if machine._effects or machine._dirty:
            self._leak(process, "effects that nobody was given")
        for room in machine.live.values():
            if not room.ended:
                self._leak(process, f"live room {room.number}")
            self._quarantined(process, room.life, [link for link in room.links.values() if link.outstanding or link.exposed])  # fmt: skip
        owners = {h for h in process.memory.owner.values() if h is not None}
        for handle in owners:
            if handle.room.life not in machine.live:
                self._leak(process, f"pages of {handle}")
        for name, peer in machine.peers.items():
            self._session(process, machine, name)
            for link in peer.rooms.values():
                if link.room.life not in machine.live:
                    self._leak(process, f"a link to {peer} for room {link.room.number}")
        self._timers(process, machine)
        self._snapshot(process, machine)

    def _snapshot(self, process: Process, machine: Machine) -> None:
        """What an operator sees: zeros, or pages with the name of the proof that is missing."""
        shot = machine.snapshot()
        if any(not entry["missing"] or not all(entry["missing"]) for entry in shot["quarantined"]):
            self._leak(process, f"pages without a named proof: {shot['quarantined']}")
        if not machine.live:
            stays = {"peers", "nodes", "dropped", "rooms_by_phase", "tombstones"}
            rest = {key: value for key, value in shot.items() if value and key not in stays}
            if rest or any(shot["rooms_by_phase"].values()):
                self._leak(process, rest)

    def _session(self, process: Process, machine: Machine, name: str) -> None:
        """A session stands only between processes that live, at both ends, and everything in it has arrived."""
        peer = machine.peers[name]
        other = self._world.processes[name]
        asks_for_proof = peer.phase is PeerPhase.GREETING and bool(getattr(machine, "_orphans", {}).get(name))
        if not other.alive and not other.slot.silent and not asks_for_proof:
            self._leak(process, f"a session with {name}, which is dead")
        if peer.phase is PeerPhase.GREETING and not asks_for_proof:
            self._leak(process, f"a greeting for {name} that no room waits for")
        if peer.phase is PeerPhase.READY and other.alive:
            back = other.machine.peers.get(process.name)
            if back is None or back.session != peer.session:
                self._leak(process, f"half a session with {name}")
            if peer.link.unacknowledged or peer.link._early:
                self._leak(process, f"{peer.link.unacknowledged} messages that {name} never acknowledged")
        if peer.awaiting:
            self._leak(process, f"rooms that wait for {name}")

    def _timers(self, process: Process, machine: Machine) -> None:
        sessions = set(machine.peers.values())
        for kind, key in machine._timers._when:
            fine = {
                "probe": key in sessions, "lease": key in sessions, "link": key in sessions, "hello": key in sessions,
                "drain": key in machine.live, "room": False, "early": False, "stones": True,
            }.get(kind, True)  # fmt: skip
            if not fine:
                self._leak(process, f"a timer {kind!r} for {key}")

    def _prefill_leaks(self, process: Process, machine: PrefillMachine) -> None:
        if len(machine._inbox):
            self._leak(process, f"{len(machine._inbox)} early rooms")
        if len(machine._stones) and machine._timers.get(("stones", 0)) is None:
            self._leak(process, "tombstones that nothing will clean")
        if self._world.scenario.rests_long and len(machine._stones):
            self._leak(process, "tombstones after their time")

    def _decode_leaks(self, process: Process, machine: DecodeMachine) -> None:
        for addr, node in machine.nodes.items():
            if node.waiting:
                self._leak(process, f"rooms that wait for {addr}")
            kept = any(peer.addr == addr for peer in machine.peers.values())
            if self._world.scenario.rests_long and not kept:
                self._leak(process, f"node {addr}, which nobody needs")

    def _ledger_leaks(self, process: Process, machine: Quiescence) -> None:
        for name, old in machine._old.items():
            if not any(link.outstanding for link in old):
                self._leak(process, f"old sessions of {name}")
        for name, links in machine._orphans.items():
            if not any(link.exposed and link.room.life in machine.live for link in links):
                self._leak(process, f"orphans of {name}")

    def _quarantined(self, process: Process, life: int, links: list[RoomLink]) -> None:
        if not links:
            self._leak(process, f"pages of life {life} for which no proof is missing")
        for link in links:
            if process.ledger.moves:
                moving = sum(m.chunk.link is link for m in process.data.motions)
                if moving != link.outstanding:
                    self._leak(process, f"{link.outstanding} outstanding chunks of life {life}, but {moving} transfers")
            elif self._proven(process, link):
                self._leak(process, f"pages of life {life} for which {link.peer.name} can't write or read any more")

    def _proven(self, process: Process, link: RoomLink) -> bool:
        """Whether a proof that what moves through the link has ended could be had, as the world really is."""
        writer, scenario = self._world.processes[link.peer.name], self._world.scenario
        if scenario.can_fence and scenario.fence_works and link.peer.phase is PeerPhase.GONE:
            return True
        if not writer.alive:
            return scenario.death_provable
        moving = any(
            (m.chunk.peer.name, m.chunk.link.life) == (process.name, link.life) for m in writer.data.motions
        )  # fmt: skip
        others = any(m.chunk.peer.name == process.name for m in writer.data.motions)
        session_over = link.peer.phase is PeerPhase.GONE
        return not (others if session_over else moving)

    # -- I6 and I7 -------------------------------------------------------------------------------------------------

    def _outcome(self, request: Request) -> None:
        handles = [h for h in self._world.engine.handles if h.request is request and not h.duplicate]
        if request.tainted or not handles or any(h.process.slot.touched or h.gave_up for h in handles):
            return
        if request.uid >= FRESH:
            return
        world = self._world
        slots = [world.engine.slot("prefill", i, request) for i in range(world.scenario.ranks)]
        slots += [world.engine.slot("decode", i, request) for i in range(world.scenario.destinations)]
        if any(slot.touched for slot in slots) or world.scenario.settings.max_inbox < 100:
            return
        if any(world.scenario.stranger == slot.index and slot.role is Role.DECODE for slot in slots):
            self._strange(handles)
        elif not request.causes:
            if len(handles) == len(slots):
                self._all_well(handles)
        elif len(request.causes) == 1:
            self._one_cause(request, handles, slots)

    def _all_well(self, handles: list[Handle]) -> None:
        for handle in handles:
            if handle.final is None or handle.final[0] is not KVPoll.Success:
                self._broken("I7 isolation", f"nothing happened to {handle}, but it ended as {handle.room.failure}")

    def _strange(self, handles: list[Handle]) -> None:
        for handle in handles:
            if handle.final is None or handle.final[0] is KVPoll.Success:
                self._broken("I6 cause", f"{handle} is with a peer of another layout, but it ended as {handle.final}")

    def _one_cause(self, request: Request, handles: list[Handle], slots: list[Slot]) -> None:
        cause = request.causes[0]
        scenario = self._world.scenario
        ranks = {"prefill": scenario.ranks, "decode": scenario.destinations}
        ranks.pop(cause.kind.partition("_never_opens")[0], None)
        if len(handles) != sum(ranks.values()):
            return
        failures = [h.room.failure for h in handles if h.room.failure is not None]
        applied = any(0 in h.applied for h in handles) or cause.kind.endswith("never_opens") or cause.kind == "bad_dp"
        if not applied:
            if failures and cause.kind != "never_offers":
                self._broken("I7 isolation", f"{cause} never came to pass, but {handles} ended with {failures}")
            return
        unheard = any(
            h.side == "decode" and h.room.failure is not None and h.aborted_in in {None, Phase.OPEN} for h in handles
        )  # fmt: skip
        expected = EXPECTED.get(cause.kind)
        for failure in failures:
            late = failure.code is FailureCode.TIMEOUT and unheard
            if expected is not None and failure.code not in expected and not late:
                self._broken("I6 cause", f"{cause} made {handles} end with {[str(f) for f in failures]}")
        pair = len(slots) == 2  # of several ranks, two may find the same thing wrong by themselves
        said = {(f.message, f.stage, f.origin * pair) for f in failures if f.code is not FailureCode.TIMEOUT}
        if len(said) > 1 and not unheard:
            self._broken("I6 cause", f"{cause}: the sides say {[str(f) for f in failures]}")

"""A live prefill instance: can it be reached, is it well, does it fit, and do pages arrive from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kv_core.cli.doctor import live
from kv_core.cli.doctor.facts.peer import ANSWER, UNRESOLVED, PeerFacts
from kv_core.cli.doctor.jobs import Met, Moved, Trouble
from kv_core.cli.doctor.processes import Outcome
from kv_core.contract.doctor import ok, problem, warning
from kv_core.contract.enums import FailureCode, FailureStage
from kv_core.contract.fabrics import words_of
from kv_core.contract.records import DoctorFinding
from kv_core.protocol.messages import PROTOCOL_VERSION
from kv_core.runtime.bootstrap.errors import ConnectionTrouble

STALLED_S = 5.0
"""A rank that has had work for so long and not moved on is not well; see ``TransferEngine.stalled_s``."""

NAME = problem(
    "peer.unresolved",
    "The peer's host in {addr} does not resolve here: {error}",
    "Correct the name, or ask the name server",
)
DEAD = problem(
    "peer.refused",
    "Nobody listens at {addr}: {error}",
    "Start the prefill instance, or correct host and port: it is the bootstrap server's address (port 8998 by default)",
)
SILENT = problem(
    "peer.silent",
    "{addr} gives no answer: {error}",
    "A firewall drops the packets, the host is down, or its process stands still: try `curl http://{addr}/health` on both hosts",
)
UNREACHABLE = problem(
    "peer.unreachable", "{addr} can't be reached: {error}", "Check routes and networks between the two hosts"
)
FOREIGN = problem(
    "peer.not-bootstrap", "What answers at {addr} is no bootstrap server of kv-core: {error}", "Correct host and port"
)
NOT_READY = problem(
    "peer.not-ready",
    "The bootstrap server at {addr} is not ready: {error}",
    "Start the missing ranks, or look at their logs",
)
WELL = ok("peer.well", "{addr}: {count} ranks, all registered; the oldest word of any is {age:.1f} s old")
STALLED = warning(
    "peer.rank-stalled",
    "Rank {ranks} of {addr} has had work and not moved on for {seconds:.1f} s",
    "Look at that rank: its transfer thread hangs in the engine, or its machine is overloaded",
)
RANK = problem(
    "peer.rank-unreachable",
    "Rank {ranks} of {addr} can't be reached at {where}: {error}",
    "Set that rank's TransferConfig.advertised_host to what is reachable from here, and let its control port through the firewall",
)
BACKEND = problem(
    "peer.backend",
    "{addr} moves pages by backend {theirs!r}, and this side by {mine}",
    "Use one backend on both sides; `kv-core backends` lists what is installed here",
)
PROTOCOL = problem(
    "peer.protocol",
    "{addr} speaks version {theirs} of kv-core's protocol, and this side version {mine}",
    "Install versions of kv-core on both sides that speak the same (here: {version})",
)
VERSIONS = ok("peer.versions", "{addr} has kv-core {core} and backend {backend!r} {version}, as this side has")
OTHER_VERSIONS = warning(
    "peer.other-versions",
    "{addr} has {theirs}; this side has kv-core {core} and {backend!r} {version}",
    "Different versions may serve each other while they roll out; bring both sides to one",
)
MET = ok("peer.met", "{addr}: the handshake passed, the two layouts fit{fabric}")
ANSWERED = ok(
    "peer.answered",
    "{addr} answers greetings, and rightly refuses the doctor's own layout: {message}",
    "Give this side's layout with --layout FILE to have the two compared",
)
LAYOUT = problem(
    "peer.layout-differs",
    "{addr} and this side can't exchange pages: {message}",
    "Change what differs on one of the two sides",
)
HANDSHAKE = problem(
    "peer.handshake",
    "No handshake with {addr}: {message}",
    "The rank has to reach this side too: see the findings on addresses, and let the control port through the firewall",
)
ARRIVED = ok("peer.moved", "{size} came from {addr} by {fabric}, every byte right, {speed}")
CORRUPT = problem(
    "peer.corrupt",
    "{wrong} of {nbytes} bytes from {addr} arrived wrong over {fabric}, and nobody noticed",
    "Do not serve with it. Set TransferConfig.digest='all' to have such rooms failed, and report this to the backend's authors",
)
FAILED = problem(
    "peer.failed",
    "A transfer from {addr} failed at stage {stage} ({code}): {message}",
    "The sentence names what to change; look at the doctor that serves there too",
)
NO_BYTES = ok(
    "peer.no-bytes",
    "{addr} serves an engine, so no pages were asked of it",
    "To measure the way, run there: kv-core doctor --serve HOST:PORT",
)


@dataclass(frozen=True)
class Mine:
    """What this side is: its backend, if one was found that works, and the versions."""

    backend: str | None
    backend_version: str
    core_version: str
    layout_given: bool


def reached(found: PeerFacts) -> Iterator[DoctorFinding]:
    """The server, and each rank."""
    if found.trouble:
        yield _unreached(found)
        return
    if found.route is None or found.health is None:
        yield NOT_READY.found(addr=found.addr, error=found.route_error)
        return
    ranks = found.health.ranks
    yield WELL.found(addr=found.addr, count=len(ranks), age=max((rank.age_s for rank in ranks), default=0.0))
    for rank in ranks:
        if rank.progress_age_s - rank.age_s > STALLED_S:
            yield STALLED.found(ranks=rank.ranks, addr=found.addr, seconds=rank.progress_age_s)
    for place, error in found.unreachable.items():
        yield RANK.found(ranks=place, addr=found.addr, where=found.route.ranks[place].address, error=error)


def _unreached(found: PeerFacts) -> DoctorFinding:
    kinds = {
        UNRESOLVED: NAME, ANSWER: FOREIGN, ConnectionTrouble.PROTOCOL.value: FOREIGN, ConnectionTrouble.CLOSED.value: FOREIGN,
        ConnectionTrouble.REFUSED.value: DEAD, ConnectionTrouble.TIMEOUT.value: SILENT,
    }  # fmt: skip
    return kinds.get(found.trouble, UNREACHABLE).found(addr=found.addr, error=found.error)


def compared(found: PeerFacts, mine: Mine) -> Iterator[DoctorFinding]:
    """Backends and versions, as the route tells them."""
    route = found.route
    if route is None:
        return
    if route.protocol_version != PROTOCOL_VERSION:
        yield PROTOCOL.found(
            addr=found.addr, theirs=route.protocol_version, mine=PROTOCOL_VERSION, version=mine.core_version
        )
    if mine.backend != route.backend:
        shown = repr(mine.backend) if mine.backend else "none that works"
        yield BACKEND.found(addr=found.addr, theirs=route.backend, mine=shown)
        return
    here = (mine.core_version, mine.backend_version)
    told = {"addr": found.addr, "core": here[0], "backend": mine.backend, "version": here[1]}
    if any(each != here for each in route.versions):
        theirs = " and ".join(f"kv-core {core} with {route.backend!r} {version}" for core, version in route.versions)
        yield OTHER_VERSIONS.found(**told, theirs=theirs)
    elif route.versions:
        yield VERSIONS.found(**told)


def may_meet(found: PeerFacts, mine: Mine) -> bool:
    """Whether a handshake is worth trying."""
    route = found.route
    return route is not None and route.protocol_version == PROTOCOL_VERSION and mine.backend == route.backend


def met(found: PeerFacts, mine: Mine, outcome: Outcome, *, better: str) -> Iterator[DoctorFinding]:
    """The handshake, and what moved if a doctor serves there. ``better``: what this machine has that is faster than TCP."""
    name, addr = str(mine.backend), found.addr
    if outcome.ended:
        yield live.ended(name, "decode", outcome)
    trouble, moved, hello = outcome.first(Trouble), outcome.every(Moved), outcome.first(Met)
    if hello is not None:
        yield MET.found(addr=addr, fabric=f"; the fabric is {hello.fabric}" if hello.fabric else "")
    if trouble is not None:
        yield _trouble(found, mine, trouble)
    yield from _moved(addr, name, moved, better=better)
    if not found.rooms and not outcome.ended:
        yield NO_BYTES.found(addr=addr)


def _trouble(found: PeerFacts, mine: Mine, trouble: Trouble) -> DoctorFinding:
    told = {"addr": found.addr, "message": trouble.message}
    if "require_transport" in trouble.message:
        return live.REQUIRED.found(name=mine.backend, message=trouble.message)
    if trouble.code == FailureCode.INCOMPATIBLE.value and trouble.stage == FailureStage.HANDSHAKE.value:
        expected = not mine.layout_given and not found.rooms
        return ANSWERED.found(**told) if expected else LAYOUT.found(**told)
    if not trouble.code and trouble.step == "start":
        return live.NOT_STARTED.found(name=mine.backend, side="decode", error=trouble.error, message=trouble.message)
    if trouble.step == "handshake":
        return HANDSHAKE.found(**told)
    return FAILED.found(**told, stage=trouble.stage or trouble.step, code=trouble.code or trouble.error)


def _moved(addr: str, name: str, moved: list[Moved], *, better: str) -> Iterator[DoctorFinding]:
    for each in moved:
        if each.wrong:
            yield CORRUPT.found(
                addr=addr, wrong=each.wrong, nbytes=each.nbytes, fabric=each.fabric or "an unknown fabric"
            )
            return
    measured = live.best(name, addr, moved)
    if measured is not None:
        fabric = measured.transport or "a fabric that its backend does not name"
        yield ARRIVED.found(size=live.megabytes(measured.nbytes), addr=addr, fabric=fabric, speed=live.speed(measured))
        if better and "tcp" in words_of(measured.transport):
            yield live.FALLBACK.found(name=name, fabric=measured.transport, better=better)

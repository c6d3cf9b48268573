"""What backends do when they are asked to work: judged from what child processes told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kv_core.cli.doctor.installed import shortened
from kv_core.cli.doctor.jobs import Moved, Registered, Serving, Trouble
from kv_core.cli.doctor.processes import Outcome
from kv_core.contract.doctor import ok, problem, warning
from kv_core.contract.fabrics import words_of
from kv_core.contract.records import DoctorFinding

GIGA = 1e9
MIB = 1 << 20

REGISTERED = ok("live.registered", "Backend {name}: registered {sizes}")
REGISTRATION = problem(
    "live.registration",
    "Backend {name} could not register {size}: {error}: {message}",
    "ENOMEM: see limits.memlock-low; EINVAL, EFAULT: the memory's kind does not fit the device (see gpu.no-peer-memory)",
)
NOT_STARTED = problem(
    "live.not-started",
    "Backend {name}: the {side} manager could not be made: {error}: {message}",
    "Correct the setting that it names; options of the backend are given with --option",
)
MOVED = ok("live.moved", "Backend {name}: {size} moved from process to process by {fabric}, every byte right, {speed}")
CORRUPT = problem(
    "live.corrupt",
    "Backend {name}: {wrong} of {nbytes} bytes arrived wrong over {fabric}, and nobody noticed",
    "Do not serve with it. Set TransferConfig.digest='all' to have such rooms failed, and report this to the backend's authors",
)
FAILED = problem(
    "live.failed",
    "Backend {name}: a transfer on this machine failed at stage {stage} ({code}): {message}",
    "The sentence names what to change; `kv-core demo --backend {name}` repeats it with more detail",
)
CRASHED = problem(
    "live.crashed",
    "Backend {name}: the {side} process {how}",
    "Its last words: {tail}. Reinstall the engine in the build that fits this machine, and report it to its authors",
)
HUNG = problem(
    "live.hung",
    "Backend {name}: the {side} process {how}",
    "Its last words: {tail}. Confine the engine to one fabric at a time (its README says how) to find the one that hangs",
)
REQUIRED = problem(
    "fabric.required",
    "Backend {name} does not use what require_transport asks for: {message}",
    "See the findings on devices for why the faster fabric is not there; the backend's README says how it is chosen",
)
FALLBACK = warning(
    "fabric.tcp-fallback",
    "Backend {name} moves pages by {fabric}, though this machine has {better}",
    "See the backend's README for how its fabric is chosen; TransferConfig.require_transport makes this fall-back fail at the start",
)


@dataclass(frozen=True)
class Measurement:
    """What one backend moved, to where, and how fast. ``wire_s``: the best of the transfers, in seconds."""

    backend: str
    to: str
    transport: str
    nbytes: int
    wire_s: float | None
    wall_s: float

    @property
    def gb_s(self) -> float:
        """Gigabytes (10^9) a second, on the wire where that time is known."""
        return self.nbytes / (self.wire_s or self.wall_s) / GIGA

    def as_dict(self) -> dict[str, object]:
        """As JSON wants it."""
        return {
            "backend": self.backend, "to": self.to, "transport": self.transport, "bytes": self.nbytes,
            "wire_seconds": self.wire_s, "wall_seconds": self.wall_s, "gb_s": self.gb_s,
        }  # fmt: skip


def best(backend: str, to: str, moved: Sequence[Moved], fabric: str = "") -> Measurement | None:
    """The fastest transfer of which every byte was right."""
    good = [each for each in moved if not each.wrong and each.nbytes]
    if not good:
        return None
    fastest = min(good, key=lambda each: each.wire_s or each.wall_s)
    return Measurement(backend, to, fabric or fastest.fabric, fastest.nbytes, fastest.wire_s, fastest.wall_s)


def registered(name: str, sizes: Sequence[int], outcome: Outcome) -> Iterator[DoctorFinding]:
    """Registering memory of these sizes."""
    done = outcome.every(Registered)
    trouble = outcome.first(Trouble)
    if trouble is not None and len(done) < len(sizes):
        if trouble.error == "RegistrationError":
            size = megabytes(sizes[len(done)])
            yield REGISTRATION.found(name=name, size=size, error=trouble.error, message=trouble.message)
        else:
            yield _not_started(name, "registering", trouble)
    elif outcome.ended:
        yield ended(name, "registering", outcome)
    else:
        told = " and ".join(f"{megabytes(each.nbytes)} ({1e3 * each.seconds:.0f} ms with its start)" for each in done)
        yield REGISTERED.found(name=name, sizes=told)


def loopback(name: str, prefill: Outcome, decode: Outcome | None, *, better: str) -> Iterator[DoctorFinding]:
    """Transfers between two processes of this machine. ``decode``: None if prefill never served. ``better``: what the machine has
    that is faster than TCP, or "".
    """
    sides = {"prefill": prefill, "decode": decode or Outcome()}
    broken = [ended(name, side, outcome) for side, outcome in sides.items() if outcome.ended]
    yield from broken
    early = prefill.first(Trouble)
    if prefill.first(Serving) is None:
        if early is not None:
            yield _not_started(name, "prefill", early)
        elif not broken:
            yield HUNG.found(name=name, side="prefill", how="said nothing", tail=shortened(prefill.tail))
        return
    if decode is None:
        return
    yield from _moved(name, prefill, decode, silent=not broken, better=better)


def _moved(name: str, prefill: Outcome, decode: Outcome, *, silent: bool, better: str) -> Iterator[DoctorFinding]:
    moved = decode.every(Moved)
    fabric = writers_fabric(prefill) or next((each.fabric for each in moved), "") or "an unknown fabric"
    wrong = next((each for each in moved if each.wrong), None)
    trouble = decode.first(Trouble)
    if wrong is not None:
        yield CORRUPT.found(name=name, wrong=wrong.wrong, nbytes=wrong.nbytes, fabric=fabric)
    if trouble is not None:
        yield failed(name, trouble) if trouble.code else _not_started(name, "decode", trouble)
    elif not moved and silent:
        yield HUNG.found(name=name, side="decode", how="said nothing", tail=shortened(decode.tail))
    measured = best(name, "loopback", moved, fabric)
    if measured is not None and wrong is None and trouble is None:
        yield MOVED.found(name=name, size=megabytes(measured.nbytes), fabric=fabric, speed=speed(measured))
    if moved and better and "tcp" in words_of(fabric):
        yield FALLBACK.found(name=name, fabric=fabric, better=better)


def writers_fabric(prefill: Outcome) -> str:
    """What the writing side says of the fabric: it is the one that knows."""
    return next((each.fabric for each in prefill.every(Moved) if each.fabric), "")


def failed(name: str, trouble: Trouble) -> DoctorFinding:
    """A room that failed between two processes of this machine."""
    if "require_transport" in trouble.message:
        return REQUIRED.found(name=name, message=trouble.message)
    return FAILED.found(name=name, stage=trouble.stage, code=trouble.code, message=trouble.message)


def _not_started(name: str, side: str, trouble: Trouble) -> DoctorFinding:
    if "require_transport" in trouble.message:
        return REQUIRED.found(name=name, message=trouble.message)
    return NOT_STARTED.found(name=name, side=side, error=trouble.error, message=trouble.message)


def ended(name: str, side: str, outcome: Outcome) -> DoctorFinding:
    """A child that crashed or hung."""
    kind = HUNG if outcome.hung else CRASHED
    return kind.found(name=name, side=side, how=outcome.ended, tail=shortened(outcome.tail))


def megabytes(nbytes: int) -> str:
    """A size for people."""
    return f"{nbytes / MIB:g} MiB" if nbytes >= MIB else f"{nbytes} bytes"


def speed(measured: Measurement) -> str:
    """How fast, and by which clock."""
    return f"{measured.gb_s:.2f} GB/s {'on the wire' if measured.wire_s else 'in all'}"

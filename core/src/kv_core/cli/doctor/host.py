"""What processes of this host may do to each other, and what this interpreter costs."""

from __future__ import annotations

from collections.abc import Iterator

from kv_core.cli.doctor.facts.process import ProcessFacts
from kv_core.contract.doctor import ok, warning
from kv_core.contract.records import DoctorFinding

COPIES = ok(
    "host.copies", "Processes of this user may copy from each other's memory (CMA), the fastest way inside of one host"
)
COPIES_DENIED = warning(
    "host.copies-denied",
    "A process may not copy from the memory of another one of this user (CMA): {error} (yama's ptrace_scope is {scope}). Between "
    "processes of this host engines use something slower",
    "sysctl kernel.yama.ptrace_scope=0, or the capability SYS_PTRACE (docker run --cap-add=SYS_PTRACE); leave it if all peers are "
    "on other hosts",
)
NAMESPACE = ok(
    "host.pids",
    "That a peer's process has ended can be proven for processes of this host{contained}; pages that a killed one may have written "
    "to are released then",
)
NO_PROOF = warning(
    "host.no-proof",
    "The end of a process can't be proven here (no /proc, or one of another pid namespace): pages that a killed peer of this host "
    "may still write to stay quarantined",
    "Mount /proc of this pid namespace",
)
SWITCH = ok(
    "host.switch-interval",
    "The interpreter lets a waiting thread wait for up to {ms:g} ms (sys.setswitchinterval)",
    "Where the engine's scheduler thread is busy in Python, set TransferConfig.switch_interval_s=0.0005: it cuts a room's latency "
    "by 3 to 4",
)


def host(found: ProcessFacts) -> Iterator[DoctorFinding]:
    """Copies, proofs, the interpreter's lock."""
    if found.copy_problem:
        yield COPIES_DENIED.found(error=found.copy_problem, scope=found.ptrace_scope or "not there")
    else:
        yield COPIES.found()
    if found.provable:
        text = " that share this container's pid namespace" if found.contained else ""
        yield NAMESPACE.found(contained=text)
    else:
        yield NO_PROOF.found()
    yield SWITCH.found(ms=1e3 * found.switch_interval_s)

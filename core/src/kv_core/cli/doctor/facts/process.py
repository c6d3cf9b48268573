"""What processes of this machine may do to each other, and how this interpreter shares its lock."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kv_core.runtime.process_proof import describe_process

PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
PID_NAMESPACE = Path("/proc/self/ns/pid")
INITIAL_NAMESPACE = "pid:[4026531836]"
"""Name of the machine's first pid namespace: a constant of the kernel (PROC_PID_INIT_INO)."""
LIMIT_S = 20.0
_VICTIM = "import ctypes, sys; b = ctypes.c_uint8(7); print(ctypes.addressof(b), flush=True); sys.stdin.read()"


@dataclass(frozen=True)
class ProcessFacts:
    """``copy_problem``: why one process may not read another one's memory, or "". ``ptrace_scope``: yama's, or "" without it.

    ``namespace``: this process's pid namespace; ``provable``: the end of a process can be proven from its pid here.
    """

    copy_problem: str
    ptrace_scope: str
    namespace: str
    provable: bool
    switch_interval_s: float

    @property
    def contained(self) -> bool:
        """Whether pids mean something else here than on the host."""
        return self.namespace not in ("", INITIAL_NAMESPACE)


def look_at_processes() -> ProcessFacts:
    """Start two processes that are not each other's children, and let one read the other's memory."""
    try:
        scope = PTRACE_SCOPE.read_text(encoding="ascii").strip()
    except OSError:
        scope = ""
    try:
        namespace = str(PID_NAMESPACE.readlink())
    except OSError:
        namespace = ""
    return ProcessFacts(try_copy(), scope, namespace, bool(describe_process()), sys.getswitchinterval())


def try_copy() -> str:
    """Why copies between processes (``process_vm_readv``, which engines call CMA) do not work; empty if they do."""
    command = [sys.executable, "-S", "-E", "-c"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, _VICTIM], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as victim:  # noqa: S603
        try:
            assert victim.stdout is not None, "asked for above"
            address = victim.stdout.readline().decode("ascii", "replace").strip()
            reader = [*command, _READER, str(victim.pid), address]
            ran = subprocess.run(reader, capture_output=True, text=True, timeout=LIMIT_S, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        finally:
            victim.kill()
    return "" if ran.returncode == 0 else (ran.stderr.strip().splitlines() or ["it failed without a word"])[-1]


_READER = """
import ctypes, os, sys
class Span(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("length", ctypes.c_size_t))
byte = ctypes.c_uint8()
here, there = Span(ctypes.addressof(byte), 1), Span(int(sys.argv[2]), 1)
call = ctypes.CDLL(None, use_errno=True).process_vm_readv
call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
call.restype = ctypes.c_ssize_t
if call(int(sys.argv[1]), ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0) != 1 or byte.value != 7:
    sys.exit(os.strerror(ctypes.get_errno()))
"""

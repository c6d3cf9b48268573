"""Where the conformance suite finds kv-mori: on a ROCm machine with an RDMA device. Needs kv-conformance.

Elsewhere the stand-in of kv-mori's own tests takes MORI's place if its folder (``tests/stand_in``) is on PYTHONPATH; what
passes against it is reported as not verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from kv_conformance import Fault, Harness, Setting
from kv_core import Role
from kv_mori.engine import DRIVER

DEVICES = Path("/sys/class/infiniband")
STAND_IN = "stand_in"


class MoriHarness(Harness):
    """MORI over RDMA, or its stand-in over TCP."""

    def __init__(self) -> None:
        self.stand_in = "the stand-in of kv-mori's tests, over TCP" if _stands_in() else ""

    def prerequisites(self) -> Sequence[str]:
        """MORI, an RDMA device with an active port, and an AMD GPU."""
        missing = []
        if not _installed():
            missing.append("MORI is not installed (no distribution amd-mori): pip install 'kv-mori[mori]'")
        if not _active_ports():
            missing.append(
                f"there is no RDMA device with an active port ({DEVICES} has none): MORI moves nothing without"
            )
        if not DRIVER.exists():
            missing.append(f"there is no AMD GPU ({DRIVER} is absent): MORI runs on ROCm machines only")
        return missing

    def setting(self, role: Role, fault: Fault | None = None) -> Setting | None:
        """An RDMA device asks no process that was stopped: over it no bytes can be held back."""
        return None if fault is Fault.HOLD_DATA and not self.stand_in else Setting()


def _installed() -> bool:
    try:
        version("amd-mori")
    except PackageNotFoundError:
        return False
    return True


def _stands_in() -> bool:
    """Whether ``import mori`` would find the stand-in. Imports nothing."""
    if _installed():
        return False
    spec = find_spec("mori")
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    return any(Path(place).parent.name == STAND_IN for place in places)


def _active_ports() -> list[Path]:
    return [state for state in DEVICES.glob("*/ports/*/state") if "ACTIVE" in state.read_text(encoding="ascii")]

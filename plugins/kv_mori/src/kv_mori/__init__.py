"""kv-mori: AMD's MORI-IO as a backend of kv-core.

Read in this order: ``transport`` (the contract, and what each failure proves), ``transfer`` (one submission), ``peers``,
``engine`` (finding and opening MORI), ``wire`` (what peers tell each other), ``options``. Importing this loads neither
MORI nor torch.
"""

from importlib.metadata import version

from kv_core import BackendInfo, BackendRecord, Capability, hookimpl
from kv_core.contract.records import DoctorCheck
from kv_mori.doctor import checks
from kv_mori.engine import has_gpu, preflight
from kv_mori.transport import MoriTransport

__version__ = version("kv-mori")


@hookimpl
def kv_backend() -> BackendRecord:
    """MORI-IO, as a backend. It moves ROCm memory where there is an AMD GPU."""
    capabilities = {Capability.WRITE, Capability.AUX, Capability.STATE}
    if has_gpu():  # elsewhere a pool of ROCm memory is refused for what it is: MORI would end the process
        capabilities.add(Capability.ROCM)
    info = BackendInfo(
        name="mori",
        distribution="kv-mori",
        version=__version__,
        api_version=(1, 0),  # what it was built for, not what is installed
        capabilities=frozenset(capabilities),
        description="AMD MORI-IO: RDMA (and XGMI) between ROCm machines",
    )
    return BackendRecord(info, MoriTransport, preflight)


@hookimpl
def kv_doctor_checks() -> list[DoctorCheck]:
    """What `kv-core doctor` shall look at besides loading the engine and letting it work."""
    return checks()


__all__ = ["MoriTransport", "__version__", "kv_backend", "kv_doctor_checks", "preflight"]

"""kv-mooncake: pages over one Mooncake ``TransferEngine``, by TCP, or by RDMA where there is a device.

Read in this order: ``transport`` (the contract, and what is said about quiescence), ``posting`` (how a batch is moved),
``peer`` with its ``breaker``, ``memory``, ``descriptor``, ``engine`` (finding and loading the native library), ``options``.
"""

from importlib.metadata import version

from kv_core import BackendInfo, BackendRecord, Capability, hookimpl
from kv_core.contract.records import DoctorCheck
from kv_mooncake.doctor import checks
from kv_mooncake.engine import may_have_cuda, preflight
from kv_mooncake.transport import MooncakeTransport

__version__ = version("kv-mooncake")


@hookimpl
def kv_backend() -> BackendRecord:
    """Mooncake, as a backend. Whether it moves CUDA memory depends on the engine's wheel, and on the host."""
    capabilities = {Capability.WRITE, Capability.READ, Capability.AUX, Capability.STATE, Capability.PROBE}
    if may_have_cuda():  # elsewhere a pool of CUDA memory is refused for what it is, and not by the engine's error code
        capabilities.add(Capability.CUDA)
    info = BackendInfo(
        name="mooncake",
        distribution="kv-mooncake",
        version=__version__,
        api_version=(1, 0),  # what it was built for, not what is installed
        capabilities=frozenset(capabilities),
        description="Mooncake TransferEngine: TCP, or RDMA where there is a device",
    )
    return BackendRecord(info, MooncakeTransport, preflight)


@hookimpl
def kv_doctor_checks() -> list[DoctorCheck]:
    """What `kv-core doctor` shall look at besides loading the engine and letting it work."""
    return checks()


__all__ = ["MooncakeTransport", "__version__", "kv_backend", "kv_doctor_checks", "preflight"]

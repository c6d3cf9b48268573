"""kv-nixl: NIXL as a backend of kv-core, through UCX or any other of NIXL's backends.

Read in this order: ``transport`` (the contract, and what is known when a transfer fails), ``peers`` (remote agents),
``lists`` (prepared descriptor lists), ``engine`` and ``options`` (NIXL itself), ``memory``, ``fabric``, ``doctor``.
"""

from importlib.metadata import version

from kv_core import BackendInfo, BackendRecord, Capability, hookimpl
from kv_core.contract.records import DoctorCheck
from kv_nixl.doctor import checks
from kv_nixl.engine import load_engine, may_have_cuda
from kv_nixl.transport import NixlTransport

__version__ = version("kv-nixl")


def _preflight() -> None:
    load_engine()


@hookimpl
def kv_backend() -> BackendRecord:
    """NIXL, as a backend. It moves CUDA memory where there is a CUDA device."""
    capabilities = {Capability.WRITE, Capability.READ, Capability.AUX, Capability.STATE, Capability.ENGINE_LATENCY}
    if (
        may_have_cuda()
    ):  # elsewhere a pool of CUDA memory is refused for what it is, and not by what NIXL says of an address
        capabilities.add(Capability.CUDA)
    info = BackendInfo(
        name="nixl",
        distribution="kv-nixl",
        version=__version__,
        api_version=(1, 0),  # what it was built for, not what is installed
        capabilities=frozenset(capabilities),
        description="NIXL agent: UCX (RDMA, TCP, copies between processes) and NIXL's other backends",
    )
    return BackendRecord(info, NixlTransport, preflight=_preflight)


@hookimpl
def kv_doctor_checks() -> list[DoctorCheck]:
    """What `kv-core doctor` shall look at besides loading the engine and letting it work."""
    return checks()


__all__ = ["NixlTransport", "__version__", "kv_backend", "kv_doctor_checks"]

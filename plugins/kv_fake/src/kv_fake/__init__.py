"""kv-fake: a software NIC over TCP. The embedded default backend of kv-core, and the shortest complete example of one.

Read in this order: ``transport`` (the contract), ``outbound`` and ``nic`` (the two sides), ``pulling`` (who reads), ``wire`` and ``iovec`` (bytes),
``memory``. ``faults`` makes it misbehave on purpose; skip it at first.
"""

from importlib.metadata import version

from kv_core import BackendInfo, BackendRecord, Capability, hookimpl
from kv_fake.faults import KINDS, FakeTransport, Fault

__version__ = version("kv-fake")


@hookimpl
def kv_backend() -> BackendRecord:
    """The software NIC, as a backend."""
    info = BackendInfo(
        name="fake",
        distribution="kv-fake",
        version=__version__,
        api_version=(1, 0),  # what it was built for, not what is installed
        capabilities=frozenset(
            {
                Capability.WRITE,
                Capability.READ,
                Capability.AUX,
                Capability.STATE,
                Capability.CANCEL,
                Capability.FENCE,
                Capability.PROBE,
                Capability.EMBEDDED,
            }
        ),
        description="software NIC: real bytes over TCP, no hardware, with a fault script",
    )
    return BackendRecord(info, FakeTransport)


__all__ = ["KINDS", "FakeTransport", "Fault", "__version__", "kv_backend"]

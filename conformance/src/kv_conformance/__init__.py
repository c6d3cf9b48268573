"""kv-conformance: tells whether a backend keeps kv-core's contract.

    python -m kv_conformance NAME [--report DIR]

Three doors for a backend's author: a ``Harness`` (entry-point group ``kv_core.conformance``), the capabilities that the
backend declares to the engine, and a file of known failures.
"""

from importlib.metadata import version

from kv_conformance.catalog import Check, Level
from kv_conformance.harness import DeviceMemory, Fault, Harness, Setting
from kv_conformance.outcomes import Outcome, Verdict

__version__ = version("kv-conformance")

__all__ = [
    "Check",
    "DeviceMemory",
    "Fault",
    "Harness",
    "Level",
    "Outcome",
    "Setting",
    "Verdict",
    "__version__",
]

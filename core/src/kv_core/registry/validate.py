"""What ``kv_backend()`` returned: type, API version, description, classes. Raises ``Fault``; constructs nothing."""

from __future__ import annotations

import inspect

from kv_core.contract.enums import Capability, ThreadingModel
from kv_core.contract.interfaces import BaseKVManager, BaseKVReceiver, BaseKVSender
from kv_core.contract.records import KV_CORE_API, BackendInfo, BackendRecord
from kv_core.contract.transport import Transport
from kv_core.registry.errors import Fault
from kv_core.registry.hints import kv_core_version
from kv_core.registry.signatures import check_class, overrides
from kv_core.registry.source import Source

_OPTIONAL_METHODS = {Capability.CANCEL: "cancel", Capability.FENCE: "fence", Capability.PROBE: "probe"}


def check_record(record: object, source: Source) -> BackendRecord:
    """The record, if core can use it. The API version comes first: with another one all the rest may rightly differ."""
    if not isinstance(record, BackendRecord):
        raise Fault(
            f"kv_backend() returned {_shown(record)}, not a BackendRecord",
            "Return kv_core.BackendRecord(info=..., transport=...) from kv_backend()",
        )
    info = record.info
    if not isinstance(info, BackendInfo):
        raise Fault(
            f"record.info is {_shown(info)}, not a BackendInfo", "Describe the backend with a kv_core.BackendInfo"
        )
    _check_api(info, source)
    _check_info(info, source)
    _check_transport(record, info)
    for role, cls, contract in (
        ("manager", record.manager, BaseKVManager),
        ("sender", record.sender, BaseKVSender),
        ("receiver", record.receiver, BaseKVReceiver),
    ):
        if cls is not None:
            check_class(cls, contract, role=role)
    _check_preflight(record)
    return record


def _check_api(info: BackendInfo, source: Source) -> None:
    api: object = info.api_version
    if not (isinstance(api, tuple) and len(api) == 2 and all(type(part) is int and part >= 0 for part in api)):
        raise Fault(
            f"info.api_version is {api!r}, must be two numbers (major, minor)",
            f"Write down the KV_CORE_API that the plugin was built for, such as {KV_CORE_API}",
        )
    major, minor = api
    if major == KV_CORE_API[0] and minor <= KV_CORE_API[1]:
        return
    newer = (major, minor) > KV_CORE_API
    raise Fault(
        f"{source.label} was built for plugin API {major}.{minor}, and kv-core {kv_core_version()} has "
        f"{KV_CORE_API[0]}.{KV_CORE_API[1]} (it takes {KV_CORE_API[0]}.0 to {KV_CORE_API[0]}.{KV_CORE_API[1]})",
        f"Upgrade kv-core, or install an older {source.distribution}"
        if newer
        else f"Upgrade {source.distribution}, or install an older kv-core",
    )


def _check_info(info: BackendInfo, source: Source) -> None:
    for field in ("name", "distribution", "version", "description"):
        value = getattr(info, field)
        if not isinstance(value, str) or not (value or field == "description"):
            raise Fault(f"info.{field} is {value!r}, must be a non-empty string", f"Fill in {field} in the BackendInfo")
    if info.name != source.name:
        raise Fault(
            f"info.name is {info.name!r}, and its entry point is named {source.name!r}",
            "Give both the same name: users load the backend by the entry point's, events and metrics carry the other",
        )
    if not info.capabilities & {Capability.WRITE, Capability.READ}:
        declared = ", ".join(sorted(capability.value for capability in info.capabilities)) or "none"
        raise Fault(
            f"info.capabilities ({declared}) has neither WRITE nor READ, so it could move nothing",
            "Declare Capability.WRITE if the prefill side pushes, or Capability.READ if the decode side pulls",
        )


def _check_transport(record: BackendRecord, info: BackendInfo) -> None:
    transport = record.transport
    check_class(transport, Transport, role="transport", constructor=True)
    name = f"class {transport.__module__}.{transport.__qualname__}"
    threading = inspect.getattr_static(transport, "threading")
    if not isinstance(threading, ThreadingModel):
        raise Fault(
            f"{name}.threading is {threading!r}, not a ThreadingModel",
            "Set `threading = ThreadingModel.OWNER` (or BLOCKING) in the class",
        )
    for capability, method in _OPTIONAL_METHODS.items():
        if capability in info.capabilities and not overrides(transport, Transport, method):
            raise Fault(
                f"info.capabilities declares {capability.name}, and {name} does not implement {method}()",
                f"Implement {method}() or take Capability.{capability.name} away",
            )


def _check_preflight(record: BackendRecord) -> None:
    if record.preflight is not None and not _callable_without_arguments(record.preflight):
        raise Fault(
            f"record.preflight is {_shown(record.preflight)}, not a plain function without parameters",
            "Write `def preflight() -> None`, which imports the engine and lets its errors out",
        )


def _callable_without_arguments(function: object) -> bool:
    if not callable(function) or inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return False
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:
        return True  # native code that doesn't tell its parameters
    return True


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'...' if len(text) > 80 else ''}" if value is not None else "None"

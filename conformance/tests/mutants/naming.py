"""Backends that are broken before anything is moved: the plugin, its record, its classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conformance.tests.mutants.base import PLUGIN, info, mutant, record_mutant, text_mutant
from kv_core import BackendRecord, BaseKVReceiver, BaseKVSender
from kv_core.contract.transport import Prepared, TransferBatch
from kv_core.runtime import CommonKVManager, CommonKVReceiver, CommonKVSender
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer

# -- the plugin's text -------------------------------------------------------------------------------------------------


text_mutant(
    "no_marker",
    "KV-ID-4",
    "The plugin's hook has kv-core's marker: here it has none.",
    PLUGIN.replace("@hookimpl\n", ""),
)
text_mutant(
    "wrong_parameters",
    "KV-ID-4",
    "A hook has the parameters that the contract gives it: here one more.",
    PLUGIN.replace("kv_backend()", "kv_backend(config=None)"),
)
text_mutant(
    "exits_at_import",
    "KV-ID-4",
    "A plugin can be imported anywhere: here it ends the process where there is no GPU.",
    'raise SystemExit("no GPU here")\n',
)
text_mutant(
    "loads_a_library_at_import",
    "KV-ID-9",
    "Importing a plugin loads no native library: here it loads one.",
    "import ctypes\n\nctypes.CDLL('libBrokenLocale.so.1')\n" + PLUGIN,
)
text_mutant(
    "starts_a_thread_at_import",
    "KV-ID-9",
    "Importing a plugin starts no thread: here one waits.",
    "import threading\n\nthreading.Thread(target=threading.Event().wait, name='at-import', daemon=True).start()\n"
    + PLUGIN,
)
text_mutant(
    "opens_a_socket_at_import",
    "KV-ID-9",
    "Importing a plugin opens no socket: here one stays open.",
    "import socket\n\nSOCKET = socket.socket()\n" + PLUGIN,
)
text_mutant(
    "prints_at_import",
    "KV-ID-9",
    "Importing a plugin writes nothing: here it greets.",
    "import sys\n\nsys.stdout.write('loading ...\\n')\n" + PLUGIN,
)


@mutant("two_of_a_name", "KV-ID-1", rivals=True)
class TwoOfAName(FakeTransport):
    """One installed distribution offers a backend's name: here two do."""


# -- what it says of itself --------------------------------------------------------------------------------------------


@record_mutant("old_api", "KV-ID-3")
def old_api(name: str) -> BackendRecord:
    """The plugin was built for the API that core has: here for an older major."""
    return BackendRecord(replace(info(name), api_version=(0, 9)), FakeTransport)


@record_mutant("newer_api", "KV-ID-3")
def newer_api(name: str) -> BackendRecord:
    """The plugin was built for no newer API than core has: here for a newer minor."""
    return BackendRecord(replace(info(name), api_version=(1, 99)), FakeTransport)


@record_mutant("another_name", "KV-ID-2")
def another_name(name: str) -> BackendRecord:
    """A backend has its entry point's name: here another one."""
    return BackendRecord(replace(info(name), name="another"), FakeTransport)


@record_mutant("another_version", "KV-ID-2")
def another_version(name: str) -> BackendRecord:
    """A backend has the version of its distribution: here one that was written down long ago."""
    return BackendRecord(replace(info(name), version="0.0.1"), FakeTransport)


@record_mutant("no_description", "KV-ID-8")
def no_description(name: str) -> BackendRecord:
    """A backend describes itself: here with nothing."""
    return BackendRecord(replace(info(name), description=" "), FakeTransport)


@record_mutant("another_one_each_time", "KV-ID-10")
def another_one_each_time(name: str) -> BackendRecord:
    """A backend says the same of itself each time: here something with the time in it."""
    from time import monotonic

    return BackendRecord(replace(info(name), description=f"built {monotonic()}"), FakeTransport)


def _preflight() -> None:
    raise OSError("libacme.so.1: cannot open shared object file: No such file or directory")


@record_mutant("engine_is_missing", "KV-ID-12")
def engine_is_missing(name: str) -> BackendRecord:
    """Where its prerequisites are there a backend loads: here its engine is missing, and no prerequisite says so."""
    return BackendRecord(info(name), FakeTransport, preflight=_preflight)


# -- its classes -------------------------------------------------------------------------------------------------------


@mutant("signature_drift", "KV-ID-5")
class SignatureDrift(FakeTransport):
    """A method has the contract's parameters: here ``submit`` wants one more."""

    def submit(self, prepared: Prepared, batch: TransferBatch, stream: object) -> FakeTransfer:  # type: ignore[override]
        return super().submit(prepared, batch)


@mutant("no_threading_model", "KV-ID-5")
class NoThreadingModel(FakeTransport):
    """A transport declares its threading model: here with a text."""

    threading = "owner"  # type: ignore[assignment]


@record_mutant("not_all_methods", "KV-ID-5")
def not_all_methods(name: str) -> BackendRecord:
    """A transport has every method: here ``wake`` is missing."""
    kind = type("NoWake", (FakeTransport,), {"wake": _abstract("wake")})
    kind.__abstractmethods__ = frozenset({"wake"})  # type: ignore[attr-defined]
    return BackendRecord(info(name), kind)


def _abstract(name: str) -> Any:
    def method(self: object) -> None:
        raise NotImplementedError(name)

    method.__isabstractmethod__ = True  # type: ignore[attr-defined]
    return method


@mutant("manager_without_health", "KV-ID-6")
class ManagerWithoutHealth(CommonKVManager):
    """A manager has every method: here ``health`` is none."""

    health = None  # type: ignore[assignment]


class _Sender(BaseKVSender):
    """As engines used to write them: just what the first version called."""

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None: ...


class _Receiver(BaseKVReceiver):
    """The same."""

    def init(self, prefill_dp_rank: int = 0) -> None: ...


@record_mutant("sender_without_metric", "KV-ID-7")
def sender_without_metric(name: str) -> BackendRecord:
    """A sender has ``poll``, ``clear``, ``get_transfer_metric``: here none of them."""
    return BackendRecord(info(name), FakeTransport, sender=_Sender)


@record_mutant("receiver_without_clear", "KV-ID-7")
def receiver_without_clear(name: str) -> BackendRecord:
    """A receiver has ``poll``, ``abort``, ``clear``: here none of them."""
    return BackendRecord(info(name), FakeTransport, receiver=_Receiver)


@mutant("receiver_signature_drift", "KV-ID-7")
class ReceiverSignatureDrift(CommonKVReceiver):
    """``send_metadata`` has the contract's parameters: here it lacks decode_prefix_len."""

    def send_metadata(self, kv_indices: Any, *, aux_index: Any = None, state_indices: Any = None) -> None:  # type: ignore[override]
        super().send_metadata(kv_indices, aux_index=aux_index, state_indices=state_indices)


@mutant("async_poll", "KV-ID-7")
class AsyncPoll(CommonKVSender):
    """No method is async: here ``poll`` is."""

    async def poll(self) -> Any:  # type: ignore[override]
        return super().poll()

"""Why a room failed, and the exceptions of the package. All of them survive pickling, and none is ever sent pickled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kv_core.contract.enums import FailureCode, FailureStage, Side


@dataclass(frozen=True)
class Failure:
    """One room's first root cause: the same value in the exception, on the wire, in metric labels and in the log.

    ``message`` is a sentence: what was expected, what was seen, which setting to change. ``origin`` names the process
    that saw the cause first (its role, rank and instance); ``peer`` the other one, where there is one.
    """

    stage: FailureStage
    code: FailureCode
    message: str
    side: Side = Side.UNKNOWN
    retryable: bool = False
    origin: str = ""
    peer: str = ""

    def __str__(self) -> str:
        where = f" [{self.origin}]" if self.origin else ""
        return f"{self.stage.value}/{self.code.value}: {self.message}{where}"

    def with_origin(self, origin: str) -> Failure:
        """The same failure, with its origin filled in if it was empty."""
        return self if self.origin else replace(self, origin=origin)


def _rebuild(cls: type[KVCoreError], state: dict[str, Any], args: tuple[Any, ...]) -> KVCoreError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class KVCoreError(Exception):
    """Base of every exception that this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), dict(self.__dict__), self.args))


class KVTransferError(KVCoreError):
    """A room failed. Raised only by ``failure_exception()``; carries the ``Failure``."""

    def __init__(self, room: int, failure: Failure) -> None:
        super().__init__(f"room {room} failed: {failure}")
        self.room = room
        self.failure = failure


class InvalidConfig(KVCoreError, ValueError):
    """A ``TransferConfig``, ``KVArgs`` or pool that can't work; the message names the field and what it should be."""


class ManagerClosed(KVCoreError):
    """A manager was asked for something new after ``close()``."""


class NotPicklable(KVCoreError, TypeError):
    """A manager or a handle was about to be pickled: they hold threads and memory and belong to one process."""


class NotSupported(KVCoreError, NotImplementedError):
    """The backend does not declare the capability that the call needs."""

    def __init__(self, what: str, capability: str = "") -> None:
        hint = f" (capability {capability!r} is not declared)" if capability else ""
        super().__init__(f"{what} is not supported by this backend{hint}")
        self.capability = capability


class TransportError(KVCoreError):
    """The fabric or its engine refused or lost something.

    ``quiescent`` says whether it is *certain* that nothing of the failed call can still move a byte.
    """

    def __init__(self, message: str, *, quiescent: bool = False) -> None:
        super().__init__(message)
        self.quiescent = quiescent


class RegistrationError(TransportError):
    """Memory could not be registered; nothing of the call stays registered.

    ``region`` is the index in the call's sequence; ``errno`` the system's error number, or 0 if there is none.
    """

    def __init__(self, message: str, *, region: int, errno: int = 0) -> None:
        super().__init__(message, quiescent=True)
        self.region = region
        self.errno = errno


class BootstrapError(KVCoreError):
    """The bootstrap server is absent, refused the request, or answered with something that is not its protocol."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class MessageError(KVCoreError, ValueError):
    """Bytes that are no message of this protocol: too long, undecodable, or with a value out of its range."""


class BackendError(KVCoreError):
    """A backend can't be used; carries its name, its distributions and what to do."""

    def __init__(self, message: str, *, backend: str, distributions: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(f"{message}. {hint}" if hint else message)
        self.backend = backend
        self.distributions = tuple(distributions)
        self.hint = hint


class BackendNotFound(BackendError, LookupError):
    """No installed distribution offers a backend of this name."""


class BackendLoadError(BackendError, ImportError):
    """The plugin's import, or its engine's, failed. ``__cause__`` is the original error."""


class IncompatibleBackend(BackendError):
    """The plugin loaded, but is not what this core can use: wrong API version, wrong hooks, wrong signatures."""

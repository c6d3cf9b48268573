"""Which backend the demo runs on when nobody says so. Asks for a capability, never for a name."""

from __future__ import annotations

from kv_core.contract.enums import Capability
from kv_core.contract.failures import BackendError, BackendNotFound
from kv_core.registry import Backend, list_backends, load_backend


def choose_backend(name: str | None) -> Backend:
    """The backend of this name; without one the only one installed, else the first that is embedded and works.

    Raises ``BackendError`` with what is wrong, or with the names to choose from.
    """
    if name is not None:
        return load_backend(name)
    names = [backend.name for backend in list_backends() if not backend.disabled]
    if len(names) == 1:
        return load_backend(names[0])
    for candidate in names:
        try:
            backend = load_backend(candidate)
        except BackendError:
            continue
        if Capability.EMBEDDED in backend.info.capabilities:
            return backend
    if not names:
        raise BackendNotFound(
            "no backend is installed", backend="", hint="By custom they are called kv-NAME: pip install kv-NAME"
        )
    raise BackendNotFound(
        f"none of the installed backends ({', '.join(names)}) is an embedded one that works",
        backend="",
        hint="Choose one with --backend NAME; kv-core backends says what is wrong with the broken ones",
    )

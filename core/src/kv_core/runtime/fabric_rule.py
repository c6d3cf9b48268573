"""``TransferConfig.require_transport``: asked when a manager is made, and of each peer before its first byte."""

from __future__ import annotations

from collections.abc import Sequence

from kv_core.contract.fabrics import meets, required_fabrics
from kv_core.contract.failures import InvalidConfig

_MEND = (
    "configure the backend, or the machine, so that it is used (`kv-core doctor` says what is missing), or leave "
    "require_transport out"
)


class FabricRule:
    """What one manager requires. Any thread."""

    def __init__(self, required: str | Sequence[str] | None) -> None:
        self._required = required_fabrics(required)

    def check_possible(self, fabrics: Sequence[str], backend: str) -> None:
        """Raise ``InvalidConfig`` if none of the ``fabrics`` that the transport may use is the one; empty: nobody knows yet."""
        if self._required and fabrics and not any(meets(self._required, fabric) for fabric in fabrics):
            raise InvalidConfig(
                f"TransferConfig.require_transport asks for {self._wanted}, and what backend {backend!r} can use here is "
                f"{_listed(fabrics)}: {_MEND}"
            )

    def problem(self, fabric: str) -> str:
        """Why nothing may move over the fabric that is in use to a peer; empty if it may."""
        if not self._required or meets(self._required, fabric):
            return ""
        return (
            f"TransferConfig.require_transport asks for {self._wanted}, and in use to this peer is {fabric!r}: {_MEND}"
        )

    @property
    def _wanted(self) -> str:
        return _listed(self._required)


def _listed(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)

"""Who a manager is, as its machine needs to know it."""

from __future__ import annotations

from dataclasses import dataclass

from kv_core.contract.enums import Direction, Role
from kv_core.protocol import messages as msg


@dataclass(frozen=True)
class Identity:
    """Who this manager is: role, backend, instance id, control endpoint, and what it tells in a handshake."""

    role: Role
    backend: str
    instance_id: str
    endpoint: str
    introduction: msg.Introduction
    can_fence: bool = False
    direction: Direction = Direction.WRITE

    @property
    def moves(self) -> bool:
        """Whether this side moves the bytes: prefill that writes, decode that reads."""
        return (self.role is Role.PREFILL) is (self.direction is Direction.WRITE)

    @property
    def label(self) -> str:
        """For texts: role, ranks and the beginning of the instance id."""
        return f"{self.introduction.label or self.role.value} ({self.instance_id[:8]})"

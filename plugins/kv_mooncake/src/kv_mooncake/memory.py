"""Registered memory: what the engine may touch, kept so that the engine's own rules are met.

The engine takes any address on the sending side, registered or not, and refuses to register ranges that overlap. So
``holds`` is asked here before it is given any, and ranges that overlap are registered as their union.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

from kv_core import MemoryKind, Region, RegistrationError
from kv_mooncake.codes import meaning
from kv_mooncake.engine import Engine

_ERRNO = {-1: errno.EINVAL, -3: errno.ENOENT, -7: errno.EEXIST}


class Span(NamedTuple):
    """A range that is registered with the engine as one."""

    start: int
    stop: int
    location: str


class RegisteredMemory:
    """The regions of one engine. Owner thread; ``holds`` may be called by any."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._spans: dict[Span, list[Region]] = {}

    def register(self, regions: Sequence[Region]) -> None:
        """Register all or none. Raises ``RegistrationError``."""
        for position, region in enumerate(regions):
            _check(region, position)
        known, fresh = self._sort(regions)
        done: list[Span] = []
        for span, members in fresh.items():
            code = self._engine.register_memory(span.start, span.stop - span.start, span.location)
            if code:
                for other in reversed(done):
                    self._engine.unregister_memory(other.start)
                position = members[0]
                raise RegistrationError(
                    f"{_named(regions[position])} could not be registered: {meaning(code)}",
                    region=position, errno=_ERRNO.get(code, 0),
                )  # fmt: skip
            done.append(span)
        for span, members in fresh.items():
            self._spans[span] = [regions[position] for position in members]
        for position, span in known.items():
            self._spans[span].append(regions[position])

    def deregister(self, regions: Sequence[Region]) -> None:
        """Take regions away; unknown ones are ignored. A span goes with the last of its regions."""
        for region in regions:
            span = self._span_of(region)
            if span is None or region not in self._spans[span]:
                continue
            members = self._spans[span]
            members.remove(region)
            if not members:
                del self._spans[span]
                self._engine.unregister_memory(span.start)

    def holds(self, region: Region) -> bool:
        """Whether all of it is registered."""
        return self._span_of(region) is not None

    def _span_of(self, region: Region) -> Span | None:
        stop = region.address + region.nbytes
        return next((span for span in self._spans if span.start <= region.address and stop <= span.stop), None)

    def _sort(self, regions: Sequence[Region]) -> tuple[dict[int, Span], dict[Span, list[int]]]:
        """Positions of regions inside of what is registered, and new spans: each the union of regions that overlap."""
        known: dict[int, Span] = {}
        groups: list[tuple[int, int, str, list[int]]] = []
        for position in sorted(range(len(regions)), key=lambda each: regions[each].address):
            region = regions[position]
            start, stop, location = region.address, region.address + region.nbytes, _location(region)
            span = self._span_of(region)
            if span is not None:
                known[position] = span
                continue
            if any(start < other.stop and other.start < stop for other in self._spans):
                raise RegistrationError(
                    f"{_named(region)} overlaps memory that is registered already, and is not inside of it (EEXIST): "
                    "register ranges that overlap in one call, or deregister the others first",
                    region=position, errno=errno.EEXIST,
                )  # fmt: skip
            if groups and start < groups[-1][1]:
                first, last, _, members = groups[-1]
                groups[-1] = (first, max(last, stop), location, [*members, position])
            else:
                groups.append((start, stop, location, [position]))
        return known, {Span(start, stop, location): members for start, stop, location, members in groups}


def _named(region: Region) -> str:
    return f"region {region.index} ({region.nbytes} bytes at {region.address:#x}, pool {region.pool!r})"


def _location(region: Region) -> str:
    return f"cuda:{region.device_id}" if region.kind is MemoryKind.CUDA else "*"  # *: the engine finds the NUMA node


def _check(region: Region, position: int) -> None:
    if region.kind is MemoryKind.ROCM:
        raise RegistrationError(
            f"{_named(region)} is ROCm memory, which none of the engine's published wheels moves (ENOTSUP)",
            region=position, errno=errno.ENOTSUP,
        )  # fmt: skip

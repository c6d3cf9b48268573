"""A transport in a node, as the checks use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kv_conformance.nodes.memory import Memory
from kv_conformance.nodes.process import Process
from kv_conformance.nodes.wire_server import Introduction, Pairs, Placed, Record
from kv_core import Region, TransferState
from kv_core.layout import MemoryLayout


class Road(NamedTuple):
    """What one node has prepared for another, in one generation."""

    prepared: int
    name: str
    generation: int


class WireNode:
    """One end. Everything that core does with a transport can be done, in any order; nothing else happens to it."""

    def __init__(self, process: Process, memory: Memory, patience_s: float) -> None:
        self.process = process
        self.memory = memory
        self.patience_s = patience_s

    # -- memory and peers ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The instance id."""
        return self.introduce().name

    def introduce(self) -> Introduction:
        """Name, descriptor and layout, made now."""
        found: Introduction = self.process.ask("introduce")
        return found

    def regions(self) -> list[Region]:
        """All regions of this node's memory, whether or not they are registered."""
        found: list[Region] = self.process.ask("regions")
        return found

    def register(self, regions: Sequence[Region]) -> None:
        """See ``Transport.register_memory``."""
        self.process.ask("register", regions)

    def deregister(self, regions: Sequence[Region]) -> None:
        """See ``Transport.deregister_memory``."""
        self.process.ask("deregister", regions)

    def add_peer(self, name: str, generation: int, descriptor: bytes) -> None:
        """See ``Transport.add_peer``."""
        self.process.ask("add_peer", name, generation, descriptor)

    def prepare(self, name: str, generation: int, layout: MemoryLayout) -> Road:
        """See ``Transport.prepare``."""
        return Road(self.process.ask("prepare", name, generation, layout), name, generation)

    def meet(self, other: WireNode | Introduction, generation: int = 1) -> Road:
        """Add the other one as a peer and prepare for it."""
        told = other if isinstance(other, Introduction) else other.introduce()
        return Road(self.process.ask("meet", told, generation), told.name, generation)

    def remove_peer(self, road: Road) -> None:
        """See ``Transport.remove_peer``."""
        self.process.ask("remove_peer", road.name, road.generation)

    def describe(self, road: Road) -> str:
        """See ``Transport.describe``."""
        text: str = self.process.ask("describe", road.name, road.generation)
        return text

    def fence(self, name: str, generation: int, limit_s: float | None = None) -> None:
        """See ``Transport.fence``."""
        self.process.ask("fence", name, generation, limit_s=limit_s)

    def probe(self, road: Road) -> bool:
        """See ``Transport.probe``."""
        answer: bool = self.process.ask("probe", road.name, road.generation)
        return answer

    # -- transfers -------------------------------------------------------------------------------------------------

    def submit(
        self, road: Road, kv: Pairs | None = None, *, states: Mapping[str, Pairs] | None = None,
        aux: tuple[int, int] | None = None, layers: range | None = None,
    ) -> int:  # fmt: skip
        """Submit one batch: pairs (local items, remote items). The transfer's number. Never raises for the transport's sake:
        what ``submit`` raised is in the transfer's record.
        """
        return self.submit_many(road, 1, kv, states=states, aux=aux, layers=layers)[0]

    def submit_many(
        self, road: Road, times: int, kv: Pairs | None = None, *, states: Mapping[str, Pairs] | None = None,
        aux: tuple[int, int] | None = None, layers: range | None = None,
    ) -> list[int]:  # fmt: skip
        """The same batch so many times, without a pause."""
        numbers: list[int] = self.process.ask("submit", road.prepared, kv, states, aux, layers, times)
        return numbers

    def submit_pages(self, road: Road, placed: Placed, layers: range | None = None) -> list[int]:
        """Submit what both sides name of these pools, as core does it: paired by its place in the prompt, and cut into batches.
        The transfers' numbers.
        """
        numbers: list[int] = self.process.ask("submit_pages", road.prepared, placed, layers)
        return numbers

    def progress(self, *numbers: int) -> list[Record]:
        """One call of ``progress``."""
        records: list[Record] = self.process.ask("progress", numbers)
        return records

    def drive(self, *numbers: int, quiescent: bool = True, limit_s: float | None = None) -> list[Record]:
        """Drive until all have ended (and are quiescent), or the limit is over; the last record of each, in order."""
        limit = self.patience_s if limit_s is None else limit_s
        records: list[Record] = self.process.ask("drive", numbers, limit, quiescent=quiescent, limit_s=limit)
        return records

    def finish(self, *numbers: int) -> None:
        """Drive until all are DONE, which they must become, and release them."""
        for record in self.drive(*numbers):
            assert record.state is TransferState.DONE, (
                f"transfer {record.number} is {record.state.value}, expected done: {record.error}"
            )
            assert record.quiescent, f"transfer {record.number} is done and not quiescent: DONE implies quiescent"
        self.release(*numbers)

    def write(self, road: Road, kv: Pairs | None = None, **what: Any) -> None:
        """Submit one batch and finish it."""
        self.finish(self.submit(road, kv, **what))

    def release(self, *numbers: int) -> None:
        """See ``Transport.release``."""
        self.process.ask("release", numbers)

    def cancel(self, number: int) -> None:
        """See ``Transport.cancel``."""
        self.process.ask("cancel", number)

    # -- the rest --------------------------------------------------------------------------------------------------

    def call(self, function: Callable[..., Any], *args: Any, limit_s: float | None = None) -> Any:
        """Call ``function(server, *args)`` in the node's owner thread; a function at the top of a module of the suite.
        ``server`` is the node's ``WireServer``.
        """
        return self.process.ask("call", function, *args, limit_s=limit_s)

    def close(self) -> None:
        """Close the transport; the process lives on."""
        self.process.ask("close")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.process.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.thaw()

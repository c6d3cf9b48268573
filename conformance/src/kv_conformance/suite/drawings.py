"""Buffers anywhere in a node's memory, over each other too: for checks of memory that ``Shape`` can't describe."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kv_conformance.nodes.memory import U8, Image
from kv_conformance.nodes.wire import WireNode
from kv_conformance.nodes.wire_server import WireServer
from kv_core import Buffer, KVArgs, Pool, Region, TransferState, TransportError
from kv_core.contract.memory import KV_POOL
from kv_core.layout import MemoryLayout


@dataclass(frozen=True)
class Drawing:
    """The buffers of a KV pool: so many items in each; each: (offset in the node's memory, bytes of an item). Buffer k is
    layer k, and region k.
    """

    items: int
    buffers: tuple[tuple[int, int], ...]

    def first(self, count: int) -> Drawing:
        """Only so many buffers."""
        return replace(self, buffers=self.buffers[:count])

    def views(self, image: Image) -> list[U8]:
        """The buffers as arrays of shape (items, bytes of an item)."""
        return [image.whole[at : at + self.items * size].reshape(self.items, size) for at, size in self.buffers]

    def take(
        self, image: Image, here: npt.ArrayLike, source: Image, there: npt.ArrayLike, drawn: Drawing,
        layers: range | None = None,
    ) -> None:  # fmt: skip
        """Copy items ``there`` of the source, which is drawn like that, into items ``here`` of the image, on these layers."""
        pairs = list(zip(self.views(image), drawn.views(source), strict=True))
        for mine, other in pairs if layers is None else pairs[layers.start : layers.stop]:
            mine[np.asarray(here, np.intp)] = other[np.asarray(there, np.intp)]


def draw(server: WireServer, drawing: Drawing) -> list[Region]:
    """In a node: what is planned and told to peers from now on is this drawing. Registers nothing; its regions."""
    base = server.memory.address
    buffers = tuple(
        Buffer(base + offset, size, drawing.items, layer) for layer, (offset, size) in enumerate(drawing.buffers)
    )
    server.args = KVArgs(kv=Pool(KV_POOL, buffers), model="conformance")
    server.layout = MemoryLayout.of(server.args)
    return list(server.layout.regions())


def draw_both(writer: WireNode, target: WireNode, drawing: Drawing) -> tuple[list[Region], list[Region]]:
    """The same drawing at both ends; the regions of each."""
    mine: list[Region] = writer.call(draw, drawing)
    theirs: list[Region] = target.call(draw, drawing)
    return mine, theirs


def reach(writer: WireNode, target: WireNode, drawing: Drawing, generation: int) -> str:
    """Try to write item 0 of the drawing's last buffer, to a newly met peer: "" if the transfer was done, otherwise how it was
    refused or failed. The writer forgets the peer afterwards.
    """
    draw_both(writer, target, drawing)
    told = target.introduce()
    last = len(drawing.buffers) - 1
    try:
        writer.add_peer(told.name, generation, told.descriptor)
        road = writer.prepare(told.name, generation, told.layout)
    except TransportError as error:
        answer = f"refused: {error}"
    else:
        number = writer.submit(road, ([0], [0]), layers=range(last, last + 1))
        record = writer.drive(number, quiescent=False)[0]
        answer = "" if record.state is TransferState.DONE else f"{record.state.value}: {record.error}"
        if record.quiescent:
            writer.release(number)
    writer.process.ask("remove_peer", told.name, generation)
    return answer

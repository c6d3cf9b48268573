"""Transports whose memory is laid out anew for each pair of ranks: every plan between two sides, carried out one by one."""

from __future__ import annotations

from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import Image, Shape
from kv_conformance.nodes.wire import Road, WireNode
from kv_conformance.suite.cache import Cache, Model, Side
from kv_conformance.suite.in_node_topology import lay, traits
from kv_conformance.suite.topologies import Rank, pair_up, ranks
from kv_core import Capability, Region, Role

CANVAS = Shape(kv=(1, 1, 1 << 19), gap=0)
"""Memory in which ranks are laid out."""


class Canvas:
    """A node that plays one rank after the other."""

    def __init__(self, node: WireNode) -> None:
        self.node = node
        self._regions: list[Region] = []

    def play(self, rank: Rank) -> Image:
        """Be this rank: its buffers are registered, and nothing else is. All of the memory, seen as its buffers; poisoned."""
        room = self.node.memory.shape.nbytes
        assert rank.shape.nbytes <= room, f"the rank takes {rank.shape.nbytes} bytes, and there are {room}"
        if self._regions:
            self.node.deregister(self._regions)
        self._regions = self.node.call(lay, rank.shape)
        self.node.register(self._regions)
        self.node.memory.poison()
        return Image(rank.shape, self.node.memory.whole)


class Wires:
    """One target, and writers that play the ranks of the other side in turn."""

    def __init__(self, env: Env, writers: int = 1) -> None:
        self.env = env
        nodes = [
            env.wire(Role.PREFILL, CANVAS, register=False, wait=False, name=f"prefill-{n}") for n in range(writers)
        ]
        nodes.append(env.wire(Role.DECODE, CANVAS, register=False, wait=False))
        for node in nodes:
            node.process.started()
        *self.writers, self.target = map(Canvas, nodes)
        self._generations = iter(range(1, 1 << 30))

    def carry(self, model: Model, source: Side, destination: Side, *, gap: int = 512) -> None:
        """Move a prompt's cache to every rank of the destination, and compare all of its memory each time. Points that the plans
        have are reached.
        """
        rows = self.env.declares(Capability.AUX)  # otherwise core carries them, and no batch has any
        cache = Cache(model, self.env.random, max(source.page, destination.page))
        senders = ranks(cache, source, gap=gap)
        for receiver in ranks(cache, destination, gap=gap):
            image = self.target.play(receiver)
            expected = Image(receiver.shape, image.whole.copy())
            receiver.expect(expected, row=rows)
            for number, sender in enumerate(senders):
                writer = self.writers[number % len(self.writers)]
                road = self.begin(writer, sender)
                if road is not None:
                    writer.node.finish(*writer.node.submit_pages(road, pair_up(sender, receiver, row=rows)))
                    writer.node.remove_peer(road)
            self.compare(expected, f"{source} to {destination}, rank {receiver.topology.ranks} of the latter")

    def begin(self, writer: Canvas, sender: Rank) -> Road | None:
        """Let a writer be this rank, with its bytes, and meet the target; None if it has nothing to send to it."""
        sender.fill(writer.play(sender))
        told = self.target.node.introduce()
        moves, found = writer.node.call(traits, told)
        for point in found & set(self.env.check.reaches):
            self.env.reached(point)
        return writer.node.meet(told, next(self._generations)) if moves else None

    def compare(self, expected: Image, what: str) -> None:
        """All of the target's memory, whatever is in its gaps."""
        wrong = Image(expected.shape, self.target.node.memory.whole).difference(expected)
        assert not wrong, f"{what}: {wrong}"

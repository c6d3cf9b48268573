"""Plans between unequal topologies, carried by the software NIC: two prefill ranks write their heads into one decode rank."""

from __future__ import annotations

import uuid
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from kv_core import Buffer, ItemLayout, KVArgs, Pool, Role, Topology, TransferConfig, TransferState
from kv_core.contract.transport import PeerKey, TransportContext
from kv_core.layout import MemoryLayout, Pages, page_batch, plan_transfer, source_ranks
from kv_fake import FakeTransport
from plugins.kv_fake.tests.support import POISON, drive, states

HEADS, HEAD_BYTES, TOKENS, ITEMS = 4, 32, 40, 32
Bytes = npt.NDArray[np.uint8]


class Rank:
    """A rank of a model of one layer, K and V, with real memory behind its pages."""

    def __init__(self, role: Role, place: Topology, page: int, order: str, model: Bytes | None) -> None:
        self.place, self.page, self.order = place, page, order
        item = ItemLayout.page(page, HEADS, HEAD_BYTES, tp_size=place.tp_size, order=order)
        self.memory = [np.full((ITEMS, item.nbytes), POISON, np.uint8) for _ in "kv"]
        self.items = np.random.default_rng(page).permutation(ITEMS)[: -(-TOKENS // page)].astype(np.uint64)
        if model is not None:
            for part, memory in enumerate(self.memory):
                memory[self.items.astype(np.intp)] = self.cut(model[part])
        addresses = [memory.ctypes.data for memory in self.memory]
        buffers = (Buffer(at, item.nbytes, ITEMS, 0, part, item) for at, part in zip(addresses, "kv", strict=True))
        self.layout = MemoryLayout.of(KVArgs(Pool("kv", tuple(buffers)), page_size=page, topology=place))
        self.name = uuid.uuid4().hex
        self.transport = FakeTransport(TransportContext(role, self.name, TransferConfig()))
        self.transport.register_memory(self.layout.regions())

    def cut(self, tokens: Bytes) -> Bytes:
        """This rank's pages of (token, head, byte)."""
        size = HEADS // self.place.tp_size
        mine = tokens[:, self.place.tp_rank * size : (self.place.tp_rank + 1) * size]
        pages = mine.reshape(-1, self.page, size, HEAD_BYTES)
        pages = pages.transpose(0, 2, 1, 3) if self.order == "HND" else pages
        return np.ascontiguousarray(pages).reshape(len(pages), -1)


@pytest.mark.parametrize(("orders", "pages"), [*product(product(("NHD", "HND"), repeat=2), ((4, 4), (4, 8), (8, 4)))])
def test_heads_of_two_ranks_meet_in_one(orders: tuple[str, str], pages: tuple[int, int]) -> None:
    model = np.random.default_rng(3).integers(1, 255, (2, TOKENS, HEADS, HEAD_BYTES), np.uint8)
    model[model == POISON] = 0
    target = Rank(Role.DECODE, Topology(1, 2), pages[1], orders[1], None)
    sources = []
    try:
        needed = source_ranks(target.place, (4, 1, 1, 1), 0, target.layout, page_size=pages[0]).required
        assert needed == ((2, 0, 0, 0), (3, 0, 0, 0))
        for ranks in needed:
            source = Rank(Role.PREFILL, Topology(ranks[0], 4), pages[0], orders[0], model)
            sources.append(source)
            key = PeerKey(target.name, 1)
            source.transport.add_peer(key, target.transport.local_descriptor())
            plan = plan_transfer(
                source.layout, target.layout, local_topology=source.place, remote_topology=target.place
            )
            prepared = source.transport.prepare(key, plan)
            batch = page_batch(plan, {"kv": (Pages(source.items), Pages(target.items))})
            transfer = source.transport.submit(prepared, batch)
            records = drive(source.transport, [transfer], lambda records: len(records) == 1)
            assert states(records) == [TransferState.DONE]
        for part, memory in enumerate(target.memory):
            expected = np.full_like(memory, POISON)
            expected[target.items.astype(np.intp)] = target.cut(model[part])
            np.testing.assert_array_equal(memory, expected)
    finally:
        for rank in (*sources, target):
            rank.transport.close()

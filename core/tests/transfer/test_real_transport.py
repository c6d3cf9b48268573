"""The engine over a transport that moves bytes through the kernel, where one is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from time import monotonic
from typing import Any

import numpy as np
import pytest

from core.tests.transfer.support import (
    ALL,
    LIMIT_S,
    Memory,
    RecordingSink,
    pair_of,
    same,
    settings,
    until,
)
from kv_core.contract.enums import Role
from kv_core.contract.transport import PeerKey, TransportContext
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.effects import AddPeer, RemovePeer, SubmitChunk
from kv_core.protocol.liveness import PeerLiveness
from kv_core.protocol.peers import Peer
from kv_core.protocol.rooms import Room, RoomLink
from kv_core.runtime.transfer import TransferEngine

transports = pytest.importorskip("kv_fake.transport", reason="the embedded backend is not installed")

PAGES = 256


class Wire:
    """A prefill engine and any number of decode NICs, all real, in one process."""

    def __init__(self) -> None:
        self.config = settings(window_bytes=1 << 20, max_batch_descriptors=512)
        self.source = Memory(pages=PAGES, layers=4, page_bytes=4096, seed=21)
        self.targets: list[Memory] = []
        self.nics: list[Any] = []
        self.sink = RecordingSink()
        transport = self._nic(Role.PREFILL, "prefill", self.source)
        self.engine = TransferEngine(
            transport, self.source.layout, self.config, self.sink, monotonic, logging.getLogger("wire"),
            capabilities=ALL,
        )  # fmt: skip
        self.engine.start()

    def _nic(self, role: Role, name: str, memory: Memory) -> Any:
        nic = transports.SoftwareNic(TransportContext(role, name, self.config))
        nic.register_memory(memory.layout.regions())
        return nic

    def peer(self) -> Peer:
        """One more decode side."""
        memory = Memory(pages=PAGES, layers=4, page_bytes=4096)
        name = f"decode-{len(self.targets)}"
        nic = self._nic(Role.DECODE, name, memory)
        self.targets.append(memory)
        self.nics.append(nic)
        # The receiving side lets a peer in once it knows it.
        source = PeerKey("prefill", 1)
        nic.add_peer(source, self.engine._transport.local_descriptor())
        pair = pair_of(self.source, memory)
        peer = Peer(name, 1, "tcp://127.0.0.1:1", PeerLiveness(1.0, 2, 5, 0.0), layout=pair)
        self.engine.put(AddPeer(peer.key, nic.local_descriptor(), pair))
        return peer

    def submit(self, peer: Peer, local: np.ndarray, remote: np.ndarray, **fields: Any) -> TransferKVChunk:
        """A room of one chunk."""
        number = len(self.sink.events) + len(self.sink.claimed) + 1
        room = Room(Role.PREFILL, number, number, "127.0.0.1:8998", 0.0)
        chunk = TransferKVChunk(room, RoomLink(room, peer, number), peer.key, 0, local, remote, **fields)
        self.engine.put(SubmitChunk(chunk))
        return chunk

    def close(self) -> None:
        """End everything."""
        self.engine.close(LIMIT_S)
        for nic in self.nics:
            nic.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A wire, closed at the end."""
    made = Wire()
    yield made
    made.close()


def test_random_pages_to_several_peers_land_whole(wire):
    draw = np.random.default_rng(77)
    peers = [wire.peer() for _ in range(3)]
    sent = []
    for k in range(24):
        local, remote = (draw.permutation(PAGES)[:32].astype(np.uint64) for _ in range(2))
        remote = np.arange(32, dtype=np.uint64) + np.uint64(32 * (k // 3))
        sent.append((k % 3, local, remote, wire.submit(peers[k % 3], local, remote, aux=(k % 4, k // 6), digest=True)))
    until(lambda: len(wire.sink.landed_chunks) == 24)
    for place, local, remote, chunk in sent:
        assert same(wire.source, wire.targets[place], "kv", local.tolist(), remote.tolist())
        assert wire.sink.landed_chunks[id(chunk)].nbytes == 32 * 8 * 4096 + 32
    for peer in peers:
        wire.engine.put(RemovePeer(peer.key))
    until(lambda: wire.engine.snapshot()["peers"] == 0)
    assert wire.engine.close(LIMIT_S)
    assert wire.sink.breaches == []


def test_a_peer_that_is_gone_fails_its_rooms_with_proof_and_no_others(wire):
    here, gone = wire.peer(), wire.peer()
    wire.nics[1].close()
    every = np.arange(PAGES, dtype=np.uint64)
    lost = [wire.submit(gone, every, every) for _ in range(4)]
    kept = [wire.submit(here, every, every) for _ in range(4)]
    until(lambda: all(chunk.settled for chunk in [*lost, *kept]))
    assert all(id(chunk) in wire.sink.failures for chunk in lost if chunk.claimed)
    assert all(id(chunk) in wire.sink.landed_chunks for chunk in kept)
    until(lambda: wire.engine.snapshot()["outstanding_transfers"] == 0)
    assert wire.engine.close(LIMIT_S)

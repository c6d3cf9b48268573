"""Pull: a chunk as prefill tells decode of it, and as decode reads it."""

from __future__ import annotations

from kv_core.protocol import messages as msg
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.rooms import Room, RoomLink


def readable(room: Room, life: int, chunk: TransferKVChunk, *, by_message: bool = False) -> msg.Readable:
    """A chunk as decode is told of it. ``by_message``: its auxiliary row goes with the end of the room."""
    layers = None if chunk.layers is None else (chunk.layers.start, chunk.layers.stop)
    states = {pool: (start, msg.WireIndices.of(local)) for pool, (start, local, _) in chunk.states.items()}
    aux = None if chunk.aux is None or by_message else chunk.aux[0]
    return msg.Readable(
        room.number, life, room.life, chunk.number, chunk.start, msg.WireIndices.of(chunk.local), layers, states, aux
    )


def chunk_of(link: RoomLink, message: msg.Readable) -> TransferKVChunk:
    """The chunk as this side reads it: what the room offered is the local side. All of it has been checked."""
    offer = link.room.offer
    assert offer is not None, "a bound room has an offer"
    states = {}
    for pool, (start, items) in message.states.items():
        theirs = items.array()
        states[pool] = (start, offer.states[pool][start : start + theirs.size], theirs)
    aux = None
    if message.aux_index is not None and offer.aux_index is not None:
        aux = (offer.aux_index, message.aux_index)
    return TransferKVChunk(
        link.room, link, link.peer.key, message.start, offer.kv, message.kv.array(),
        None if message.layers is None else range(*message.layers), states, aux, number=message.number,
        prefix=offer.decode_prefix_len, pulled=True,
    )  # fmt: skip

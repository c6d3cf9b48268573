"""What ranks say to each other: packets (one ZeroMQ frame each) and the messages that data packets carry.

Wire format: msgpack by msgspec, structs as arrays that begin with their tag, so that fields may be appended and older
readers ignore them; the handshake fields are a map. Integers are bounded by their types, byte strings by the codec's
limit on the whole packet.

Hello, Welcome, Refuse, Reset, Bye, Ping and Pong are datagrams: they may be lost or doubled. ``Data`` carries numbered
messages, which ``protocol.link`` delivers exactly once and in order for as long as a session lasts.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from kv_core.contract.config import MAX_ROOM
from kv_core.contract.enums import FailureCode, FailureStage, Side
from kv_core.contract.failures import Failure, MessageError

_E = TypeVar("_E", bound=Enum)

PROTOCOL_VERSION = 1
"""Raised when an older reader could misunderstand a packet; added fields do not raise it."""

MAX_NAME = 128
MAX_TEXT = 4_000
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
RoomNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_ROOM)]
Life: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_ROOM)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_ROOM)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Traceparent: TypeAlias = Name | None
"""A request's trace, as its engine named it. What is none is told from what is one where it is read."""


class WireFailure(msgspec.Struct, array_like=True, frozen=True):
    """A ``Failure`` as it travels: plain strings, so that a newer peer's codes do not make the message undecodable."""

    stage: Name
    code: Name
    message: Text
    side: Name
    retryable: bool
    origin: Text
    peer: Text

    @classmethod
    def of(cls, failure: Failure) -> WireFailure:
        """The failure, with its texts cut to what the wire takes."""
        return cls(
            failure.stage.value, failure.code.value, _text(failure.message), failure.side.value, failure.retryable,
            _text(failure.origin), _text(failure.peer),
        )  # fmt: skip

    def failure(self) -> Failure:
        """The failure as the receiving side reports it: the other side's own abort is a remote one here."""
        code = _member(FailureCode, self.code, FailureCode.TRANSPORT_ERROR)
        if code is FailureCode.ABORTED_LOCAL:
            code = FailureCode.ABORTED_REMOTE
        return Failure(
            _member(FailureStage, self.stage, FailureStage.TRANSFER), code, self.message,
            _member(Side, self.side, Side.UNKNOWN), self.retryable, self.origin, self.peer,
        )  # fmt: skip


def _text(value: str) -> str:
    """The text as the wire takes it: not too long, and without the half characters that undecodable bytes leave in a
    ``str``. A message that can't be encoded would hold up all that follow it.
    """
    return value[:MAX_TEXT].encode("utf-8", "replace").decode()


def _member(kind: type[_E], value: str, default: _E) -> _E:
    try:
        return kind(value)
    except ValueError:
        return default


class WireIndices(msgspec.Struct, array_like=True, frozen=True):
    """``count`` item indices, little-endian, 4 or 8 bytes each."""

    count: Count
    data: bytes

    @classmethod
    def of(cls, indices: npt.NDArray[np.uint64]) -> WireIndices:
        """Pack uint64 indices, in 4 bytes each where they fit."""
        small = indices.size == 0 or int(indices.max()) < 2**32
        return cls(int(indices.size), indices.astype("<u4" if small else "<u8").tobytes())

    def array(self) -> npt.NDArray[np.uint64]:
        """The indices. Raises ``MessageError`` if count and length disagree."""
        width = len(self.data) // self.count if self.count else 0
        if len(self.data) != width * self.count or (self.count and width not in (4, 8)):
            raise MessageError(f"{self.count} indices can't take {len(self.data)} bytes: 4 or 8 bytes each expected")
        return np.frombuffer(self.data, "<u4" if width == 4 else "<u8").astype(np.uint64)


class _Message(msgspec.Struct, array_like=True, frozen=True, tag=str.lower):
    pass


# -- decode to prefill ---------------------------------------------------------------------------------------------


class Announce(_Message, frozen=True):
    """Decode has opened this room and queues for pages; renewed by ``Lease``. ``destinations``: how many decode ranks do."""

    room: RoomNumber
    life: Life
    destinations: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 1
    traceparent: Traceparent = None


class Metadata(_Message, frozen=True):
    """Decode names its pages: from now on they may be written. ``destinations``: how many decode ranks name pages."""

    room: RoomNumber
    life: Life
    kv: WireIndices
    states: dict[Name, WireIndices]
    aux_index: Count | None
    decode_prefix_len: Count
    destinations: Annotated[int, msgspec.Meta(ge=1, le=65_536)]


class Abort(_Message, frozen=True):
    """Decode gives up this room; who moves the bytes says ``Quiesced`` once nothing of it can move any more."""

    room: RoomNumber
    life: Life
    failure: WireFailure


class Pulled(_Message, frozen=True):
    """Pull: decode has read this chunk of prefill's, and reads it no more. ``seconds``: what it took; ``wire_seconds``: what all
    of the room's chunks from this source have taken so far, overlaps counted once.
    """

    room: RoomNumber
    life: Life
    number: Count
    nbytes: Count
    seconds: Seconds
    wire_seconds: Seconds
    latency_source: Name


class Concluded(_Message, frozen=True):
    """Decode's verdict on a ``Done`` room: None is Success."""

    room: RoomNumber
    life: Life
    failure: WireFailure | None


class Lease(_Message, frozen=True):
    """The sender still holds these rooms of its own lives (decode: queued ones; prefill: bound ones, by decode's life)."""

    lives: list[Life]


# -- prefill to decode: ``life`` is always the decode side's, so that a message of an old life finds nobody ---------


class Bound(_Message, frozen=True):
    """Prefill's room of life ``source_life`` took the decode side's pages; bytes may move from now on."""

    room: RoomNumber
    life: Life
    source_life: Life
    traceparent: Traceparent = None


class ChunkDigest(msgspec.Struct, array_like=True, frozen=True):
    """xxh3-64 over the bytes of one chunk in plan order: pages ``start`` to ``start + count`` on layers [first, stop)."""

    start: Count
    count: Count
    first_layer: int
    stop_layer: int
    states: dict[Name, tuple[int, int]]
    aux: bool
    digest: int


class Readable(_Message, frozen=True):
    """Pull: these pages of prefill's may be read from now on. ``start``: position of the first one in the room; ``layers``: the
    first and the one after the last, or None for all; ``states``: pool to (position of the first item, items); ``aux_index``: row.
    """

    room: RoomNumber
    life: Life
    source_life: Life
    number: Count
    start: Count
    kv: WireIndices
    layers: tuple[int, int] | None = None
    states: dict[Name, tuple[Count, WireIndices]] = {}
    aux_index: Count | None = None


class Done(_Message, frozen=True):
    """Every byte of the room has landed, and none of it is outstanding."""

    room: RoomNumber
    life: Life
    source_life: Life
    pages: Count
    nbytes: Count
    wire_seconds: Seconds
    latency_source: Name
    chunks: Count
    digests: list[ChunkDigest]
    aux_rows: list[bytes]


class Failed(_Message, frozen=True):
    """Prefill's side of the room failed. ``quiescent``: nothing can land any more; else ``Quiesced`` follows."""

    room: RoomNumber
    life: Life
    failure: WireFailure
    quiescent: bool


class Quiesced(_Message, frozen=True):
    """From the side that moves the bytes: nothing of this room's life can move any more."""

    room: RoomNumber
    life: Life


class SessionQuiesced(_Message, frozen=True):
    """Nothing of any earlier session between the two processes, up to and including this one, can move any more."""

    session: Count


Message: TypeAlias = (
    Announce | Metadata | Abort | Pulled | Concluded | Lease | Bound | Readable | Done | Failed | Quiesced | SessionQuiesced
)  # fmt: skip


def weight(message: Message) -> int:
    """An upper bound, and not a bad one, of the bytes that a message takes in a packet."""
    size = 64
    if isinstance(message, Metadata):
        size += len(message.kv.data)
        size += sum(4 * MAX_NAME + 32 + len(items.data) for items in message.states.values())
    elif isinstance(message, Readable):
        size += 64 + len(message.kv.data)
        size += sum(4 * MAX_NAME + 48 + len(items.data) for _, items in message.states.values())
    elif isinstance(message, Pulled):
        size += 4 * MAX_NAME
    elif isinstance(message, Announce | Bound):
        size += 4 * len(message.traceparent or "")
    elif isinstance(message, Lease):
        size += 9 * len(message.lives)
    elif isinstance(message, Done):
        size += 4 * MAX_NAME + sum(9 + len(row) for row in message.aux_rows)
        size += sum(64 + (4 * MAX_NAME + 24) * len(digest.states) for digest in message.digests)
    elif isinstance(message, Abort | Failed | Concluded) and message.failure is not None:
        failure = message.failure
        size += 4 * (len(failure.message) + len(failure.origin) + len(failure.peer)) + 256
    return size


# -- packets -------------------------------------------------------------------------------------------------------


class _Packet(msgspec.Struct, array_like=True, frozen=True, tag=str.lower, kw_only=True):
    """Who speaks, to whom (instance ids), and in which session (minted by the decode side, growing).

    These fields come first in every packet, and the packet's own after them, in the order in which they are written
    here: that is what ``kw_only`` is for, in each class. New fields go to the end, with a default.
    """

    version: int = PROTOCOL_VERSION
    sender: Name
    receiver: Name
    session: Count


class Introduction(msgspec.Struct, frozen=True):
    """What both sides tell in the handshake: named fields to compare, memory layout, transport descriptor, process."""

    fields: dict[str, str | int]
    layout: dict[str, object]
    descriptor: bytes
    endpoint: Name
    label: Text = ""
    process: dict[str, str | int] = {}


class Hello(_Packet, frozen=True, kw_only=True):
    """Decode asks for a session. ``rooms``: those that wait for the answer, to be failed by a refusal."""

    introduction: Introduction
    rooms: list[RoomNumber]


class Welcome(_Packet, frozen=True, kw_only=True):
    """Prefill takes the session."""

    introduction: Introduction


class Refuse(_Packet, frozen=True, kw_only=True):
    """Prefill refuses the session; the failure's message lists every differing field with both values."""

    failure: WireFailure


class Reset(_Packet, frozen=True, kw_only=True):
    """``about``, whom the receiver of this packet addressed in this session, does not have the session (any more), or
    does not live at the sender's address (any more). ``quiescent``: nothing that the sender moved in that session, or an earlier
    one, can move any more.
    """

    about: Name
    quiescent: bool = False


class Bye(_Packet, frozen=True, kw_only=True):
    """The sender closes. ``quiescent``: nothing that it moved can go on."""

    quiescent: bool


class Ping(_Packet, frozen=True, kw_only=True):
    """Are you there? ``number`` comes back in the Pong; ``endpoint`` is where a stranger sends his Reset."""

    number: Count
    ack: Count
    endpoint: Name


class Pong(_Packet, frozen=True, kw_only=True):
    """Here. ``stalled_s``: how long the sender's transfer thread has not moved although it had work."""

    number: Count
    ack: Count
    stalled_s: Seconds


class Data(_Packet, frozen=True, kw_only=True):
    """Messages numbered ``seq``, ``seq + 1``, ...; ``ack``: all numbers up to it have been received in order."""

    seq: Count
    ack: Count
    messages: list[Message]


Packet: TypeAlias = Hello | Welcome | Refuse | Reset | Bye | Ping | Pong | Data


MAX_HEADER = 2_048
"""What the fields of a ``Data`` packet take beside its messages."""


class Codec:
    """Packets to bytes and back, with a limit on the length. Not thread-safe: one for each thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Packet] = msgspec.msgpack.Decoder(Packet)

    def encode(self, packet: Packet) -> bytes:
        """The packet's bytes. Raises ``MessageError`` if they exceed the limit."""
        data = self._encoder.encode(packet)
        if len(data) > self.max_bytes:
            raise MessageError(
                f"a {type(packet).__name__} of {len(data)} bytes exceeds TransferConfig.max_message_bytes ({self.max_bytes})"
            )
        return data

    def decode(self, data: bytes | memoryview) -> Packet:
        """The packet. Raises ``MessageError`` for anything that is none, whatever the bytes are."""
        if len(data) > self.max_bytes:
            raise MessageError(f"{len(data)} bytes exceed TransferConfig.max_message_bytes ({self.max_bytes})")
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:  # TypeError: msgspec 0.18
            raise MessageError(f"{len(data)} bytes that are no packet of this protocol: {error}") from error

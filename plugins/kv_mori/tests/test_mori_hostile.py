"""A peer's descriptor comes from the network: what makes no sense never reaches native code."""

from __future__ import annotations

import random

import msgspec
import pytest

from kv_core import Role, TransportError
from kv_core.contract.transport import PeerKey
from kv_mori import wire
from plugins.kv_mori.tests.support_mori import POISON, End

ENCODE, DECODE = msgspec.msgpack.encode, msgspec.msgpack.decode


def fields_of(descriptor):
    magic, version, engine, memory = DECODE(descriptor)
    return [magic, version, DECODE(engine), [[index, size, DECODE(packed)] for index, size, packed in memory]]


def packed(fields):
    magic, version, engine, memory = fields
    return ENCODE([magic, version, ENCODE(engine), [[i, n, ENCODE(desc)] for i, n, desc in memory]])


def change(path, value):
    def apply(fields):
        *way, last = path
        place = fields
        for step in way:
            place = place[step]
        place[last] = value

    return apply


HOSTILE = {
    "magic": change([0], "kv-other"),
    "version": change([1], 2),
    "engine key is a number": change([2, 0], 7),
    "engine key is empty": change([2, 0], ""),
    "engine key is huge": change([2, 0], "x" * 2000),
    "port too large": change([2, 4], 70_000),
    "port is text": change([2, 4], "80"),
    "host is a name": change([2, 3], "somewhere.example"),
    "nested": change([2, 3], [[[]]]),
    "short engine": lambda fields: fields[2].pop(),
    "many fields": lambda fields: fields[2].extend(range(40)),
    "memory of another engine": change([3, 0, 2, 0], "somebody"),
    "memory of another size": change([3, 0, 2, 5], 1),
    "memory of no size": lambda fields: (change([3, 0, 1], 0)(fields), change([3, 0, 2, 5], 0)(fields)),
    "memory with a float": change([3, 1, 2, 4], 1.5),
    "memory with a map": change([3, 1, 2, 7], {"a": 1}),
    "a handle that is text": change([3, 1, 2, 7], "x"),
    "a short handle": change([3, 1, 2, 7], bytes(63)),
    "a field less": lambda fields: fields[3][1][2].pop(),
    "a field more": lambda fields: fields[3][1][2].append(0),
    "no such place": change([3, 1, 2, 6], 3),
    "no such device": change([3, 1, 2, 2], 10**6),
    "past the end of memory": change([3, 1, 2, 4], 2**64 - 1),
    "at address 0": change([3, 1, 2, 4], 0),
    "a region twice": change([3, 1, 0], 0),
    "index is text": change([3, 1, 0], "0"),
}


@pytest.fixture
def ends(monkeypatch):
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        unpacked: list[bytes] = []
        monkeypatch.setattr(source.transport._io.EngineDesc, "unpack", staticmethod(unpacked.append))
        yield source, target
        assert unpacked == []


@pytest.mark.parametrize("case", HOSTILE)
def test_each_field_is_checked(ends, case):
    source, target = ends
    fields = fields_of(target.descriptor)
    assert packed(fields) == target.descriptor, "taken apart and put together, it is the same"
    HOSTILE[case](fields)
    with pytest.raises(TransportError) as caught:
        source.transport.add_peer(PeerKey(target.name, 1), packed(fields))
    assert caught.value.quiescent


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", bytes(100), b"\x95" * 1000, bytes(2**20 + 1)])
def test_bytes_that_are_no_descriptor(ends, data):
    source, target = ends
    with pytest.raises(TransportError):
        source.transport.add_peer(PeerKey(target.name, 1), data)


def test_random_damage_is_refused_or_harmless():
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    with End(Role.DECODE, fill=POISON) as target:
        good = target.descriptor
        engine, memory = (DECODE(good)[2], DECODE(good)[3][0][2])
    for _ in range(3_000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            found = wire.unpack(bytes(data), engine, memory)
        except ValueError:
            continue
        for item in found.memory:
            fields = DECODE(item.packed)
            assert (fields[0], fields[5]) == (DECODE(found.engine)[0], item.nbytes), f"seed {seed}"


def test_a_peer_cannot_take_the_place_of_another_one():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        source.meet(target)
        for descriptor in (target.descriptor, source.descriptor):
            with pytest.raises(TransportError, match="engine key"):
                source.transport.add_peer(PeerKey("an impostor", 1), descriptor)


def test_too_many_regions_for_a_descriptor():
    memory = tuple(wire.Memory(n, 4096, bytes(300)) for n in range(5_000))
    with pytest.raises(TransportError, match="fewer"):
        wire.pack(b"", memory)

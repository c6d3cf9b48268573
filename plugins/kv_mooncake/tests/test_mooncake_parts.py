"""The parts by themselves: breaker, descriptor, options, registered memory, codes."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from kv_core import (
    InvalidConfig,
    MemoryKind,
    Region,
    RegistrationError,
    Role,
    TransferConfig,
    TransportError,
)
from kv_core.contract.transport import PeerKey, TransportContext
from kv_mooncake import MooncakeTransport, options
from kv_mooncake.breaker import MAX_BACKOFF, Breaker
from kv_mooncake.codes import meaning
from kv_mooncake.descriptor import MAGIC, Descriptor
from kv_mooncake.memory import RegisteredMemory
from kv_mooncake.posting import COPY_BYTES, IN_FLIGHT, PIECE, PIECE_BYTES, Copies
from plugins.kv_mooncake.tests.support import End

# -- breaker -----------------------------------------------------------------------------------------------------------


def test_a_breaker_opens_after_failures_in_a_row_only():
    breaker = Breaker(3, 1.0)
    for now in (1.0, 2.0):
        breaker.failed(now)
    breaker.succeeded()
    for now in (3.0, 4.0):
        breaker.failed(now)
    assert not breaker.open
    assert breaker.refuses(4.0) == 0.0
    breaker.failed(5.0)
    assert breaker.open
    assert breaker.refuses(5.25) == 0.75
    assert breaker.refuses(6.0) == 0.0  # a probe may be made


def test_a_breakers_wait_doubles_up_to_a_limit_and_starts_anew_after_a_success():
    breaker = Breaker(1, 0.5)
    waits, now = [], 100.0
    for _ in range(12):
        breaker.failed(now)
        waits.append(breaker.refuses(now))
        breaker.failed(now)  # what was under way when it opened changes nothing
        assert breaker.refuses(now) == waits[-1]
        now += waits[-1]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert waits[-1] == 0.5 * MAX_BACKOFF
    breaker.succeeded()
    assert not breaker.open
    breaker.failed(now)
    assert breaker.refuses(now) == 0.5


def test_a_breaker_opens_at_once_for_a_peer_that_used_up_its_time():
    breaker = Breaker(5, 2.0)
    breaker.failed(10.0, at_once=True)
    assert breaker.open
    assert breaker.refuses(11.0) == 1.0


# -- descriptor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "session"),
    [
        ("127.0.0.1", "127.0.0.1:15000"),
        ("::1", "[::1]:15000"),
        ("node-7.rack_2.example", "node-7.rack_2.example:15000"),
    ],
)
def test_a_descriptor_comes_back_as_it_was(host, session):
    there = Descriptor(host, 15000, "tcp")
    assert Descriptor.unpack(there.pack()) == there
    assert there.session() == session


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", MAGIC, b"kv-mooncake/2 tcp 1 h", MAGIC + b"tcp 15000", MAGIC + b"tcp 15000 host more",
        MAGIC + b"udp 15000 host", MAGIC + b"tcp 0 host", MAGIC + b"tcp 65536 host", MAGIC + b"tcp -1 host",
        MAGIC + b"tcp 1e3 host", MAGIC + b"tcp 15000 ", MAGIC + b"tcp 15000 a:b", MAGIC + b"tcp 15000 fe80::1%eth0",
        MAGIC + b"tcp 15000 host/../x", MAGIC + b"tcp 15000 ho\nst", MAGIC + b"tcp 15000 \xff\xfe", MAGIC + b"tcp 15000 -host",
        MAGIC + b"tcp 15000 " + b"h" * 300, MAGIC + b"tcp " + b"1" * 200 + b" host", MAGIC + b"tcp \xd9\xa1 host",
    ],
)  # fmt: skip
def test_a_senseless_descriptor_is_refused(data):
    with pytest.raises(ValueError, match="descriptor"):
        Descriptor.unpack(data)
    with End(Role.PREFILL) as end, pytest.raises(TransportError, match="somebody") as caught:
        end.transport.add_peer(PeerKey("somebody", 1), data)
    assert caught.value.quiescent


def test_a_peer_of_another_protocol_is_refused():
    with End(Role.PREFILL) as end, pytest.raises(TransportError, match="uses rdma, and this side tcp"):
        end.transport.add_peer(PeerKey("somebody", 1), Descriptor("127.0.0.1", 15000, "rdma").pack())


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"protocoll": "tcp"}, "protocoll"),
        ({"protocol": "udp"}, "protocol"),
        ({"protocol": "tcp", "devices": ["mlx5_0"]}, "no RDMA devices"),
        ({"devices": 7}, "devices"),
        ({"protocol": "rdma"}, "no RDMA device"),
        ({"failures_to_open": 0}, "failures_to_open"),
        ({"failures_to_open": 2.5}, "failures_to_open"),
        ({"retry_after_s": "1"}, "retry_after_s"),
        ({"retry_after_s": 0}, "retry_after_s"),
    ],
)
def test_senseless_options_are_refused(given, said, monkeypatch, tmp_path):
    monkeypatch.setattr(options, "DEVICES", tmp_path / "none")
    with pytest.raises(InvalidConfig, match=said):
        options.read(given)


def test_the_protocol_follows_the_devices_of_the_host(monkeypatch, tmp_path):
    def fabric(**given):
        return str(options.read(given)[1])

    monkeypatch.delenv("MC_FORCE_TCP", raising=False)
    monkeypatch.setattr(options, "DEVICES", tmp_path)
    assert fabric() == "tcp"
    assert options.read({})[1].environment["MC_FORCE_TCP"] == "1"
    for name in ("mlx5_1", "mlx5_0"):
        (tmp_path / name).mkdir()
    assert fabric() == "rdma mlx5_0,mlx5_1"
    assert "MC_FORCE_TCP" not in options.read({})[1].environment
    assert fabric(protocol="rdma", devices=["mlx5_1"]) == "rdma mlx5_1"
    with pytest.raises(InvalidConfig, match="'mlx5_7', this host has mlx5_0, mlx5_1"):
        fabric(devices=["mlx5_7"])
    with pytest.raises(InvalidConfig, match="the protocol is tcp"):
        fabric(protocol="tcp", devices=["mlx5_0"])
    monkeypatch.setenv("MC_FORCE_TCP", "1")
    assert fabric() == "tcp"
    with pytest.raises(InvalidConfig, match="MC_FORCE_TCP"):
        fabric(protocol="rdma")


def test_a_host_that_is_none_is_refused():
    with pytest.raises(InvalidConfig):
        MooncakeTransport(TransportContext(Role.PREFILL, "me", TransferConfig(advertised_host="no host")))


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("MC_TCP_ADMISSION_TIMEOUT_MS", "2000")
    before = dict(os.environ)
    with End(Role.PREFILL):
        assert dict(os.environ) == before


# -- memory ------------------------------------------------------------------------------------------------------------


class Book:
    """Stands in for the engine: keeps what is registered, by its rules."""

    def __init__(self):
        self.ranges = {}
        self.broken = None

    def register_memory(self, address, nbytes, location):
        if address == self.broken:
            return -202
        if any(address < start + size and start < address + nbytes for start, size in self.ranges.items()):
            return -7
        self.ranges[address] = nbytes
        return 0

    def unregister_memory(self, address):
        return 0 if self.ranges.pop(address, None) else -3


@pytest.fixture
def book():
    return Book()


@pytest.fixture
def memory():
    array = np.zeros(1 << 16, np.uint8)
    start = int(array.__array_interface__["data"][0])
    yield lambda index, offset, nbytes: Region(index, start + offset, nbytes)
    del array


def test_the_same_range_twice_is_deregistered_with_the_second(book, memory):
    registered, region = RegisteredMemory(book), memory(0, 0, 4096)
    registered.register([region])
    registered.register([region])
    registered.deregister([region])
    assert registered.holds(region)
    assert len(book.ranges) == 1
    registered.deregister([region, region])
    assert not registered.holds(region)
    assert not book.ranges


def test_ranges_that_overlap_in_one_call_are_one_for_the_engine(book, memory):
    registered = RegisteredMemory(book)
    regions = [memory(0, 8192, 4096), memory(1, 0, 9000), memory(2, 100, 10), memory(3, 12288, 100)]
    registered.register(regions)
    assert sorted(book.ranges.values()) == [100, 12288]  # neighbours that only touch stay apart
    registered.deregister(regions[1:])
    assert registered.holds(regions[0])
    assert list(book.ranges.values()) == [12288]
    registered.deregister(regions)
    assert not book.ranges


def test_a_later_range_may_lie_inside_and_not_across(book, memory):
    registered, first = RegisteredMemory(book), memory(0, 4096, 8192)
    registered.register([first])
    inside = memory(1, 5000, 100)
    registered.register([inside])
    with pytest.raises(RegistrationError, match="overlaps memory that is registered already") as caught:
        registered.register([memory(2, 40_000, 8), memory(3, 0, 5000)])
    assert (caught.value.region, caught.value.errno) == (1, errno.EEXIST)
    assert list(book.ranges.values()) == [8192]
    registered.deregister([first])
    assert registered.holds(inside)
    registered.deregister([inside])
    assert not book.ranges


def test_registration_is_all_or_none(book, memory):
    registered, regions = RegisteredMemory(book), [memory(index, index * 8192, 4096) for index in range(4)]
    book.broken = regions[2].address
    with pytest.raises(RegistrationError, match="locked memory") as caught:
        registered.register(regions)
    assert caught.value.region == 2
    assert not book.ranges
    assert not registered.holds(regions[0])
    book.broken = None
    registered.register(regions)
    assert len(book.ranges) == 4


def test_memory_that_the_engine_does_not_move_is_refused_and_nothing_stays_registered():
    with End(Role.PREFILL) as end:
        regions = [*end.layout.regions(), Region(99, 2**20, 4096, MemoryKind.ROCM)]
        with pytest.raises(RegistrationError, match="region 99") as caught:
            end.transport.register_memory(regions)
        assert (caught.value.region, caught.value.errno) == (len(regions) - 1, errno.ENOTSUP)


# -- the rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [-1, -2, -3, -6, -7, -101, -102, -103, -104, -200, -201, -202, -302, -999])
def test_every_code_is_a_sentence_with_its_number(code):
    assert f"({code})" in meaning(code)


def test_what_is_in_flight_to_a_peer_fits_into_the_engines_queue():
    assert PIECE * IN_FLIGHT <= 1024


def test_pieces_are_of_bounded_number_and_size():
    for length, pages in ((COPY_BYTES, 1_000), (32_768, 4_096), (1, 1)):
        address = np.arange(pages, dtype=np.uint64) * np.uint64(length)
        taken = list(Copies(address, address, np.full(pages, length, np.uint64)).pieces())
        assert all(int(part.length.sum()) <= PIECE_BYTES and len(part.length) <= PIECE for part in taken)
        assert np.array_equal(np.concatenate([part.local for part in taken]), address)

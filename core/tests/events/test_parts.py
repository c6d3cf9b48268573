"""The parts of a publisher without sockets: endpoints, topics, configuration, numbers, ring, answers, queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.tests.events.support import batch, stored
from kv_core.contract.failures import InvalidConfig
from kv_core.events import (
    AllBlocksCleared,
    EventPublisher,
    EventPublisherFactory,
    KVEventsConfig,
    NullEventPublisher,
    epoch_of,
    offset_endpoint_port,
    register_publisher,
)
from kv_core.events.answers import Answers
from kv_core.events.endpoints import binds, reachable
from kv_core.events.numbers import begins_a_life, first_of_life
from kv_core.events.queueing import DroppingQueue, Loss
from kv_core.events.ring import ReplayRing
from kv_core.events.sequence import Sequence
from kv_core.events.topics import fill

NOW = 1_795_000_000_000


@pytest.mark.parametrize(
    ("endpoint", "rank", "wanted"),
    [
        ("tcp://*:5557", 0, "tcp://*:5557"),
        ("tcp://*:5557", 3, "tcp://*:5560"),
        ("tcp://[::1]:5557", 1, "tcp://[::1]:5558"),
        ("tcp://*:0", 3, "tcp://*:0"),
        ("inproc://cache", 2, "inproc://cache_dp2"),
        ("ipc:///tmp/x", 2, "ipc:///tmp/x_dp2"),
        (None, 2, None),
        ("", 2, ""),
    ],
)
def test_a_rank_has_its_own_endpoint(endpoint, rank, wanted):
    assert offset_endpoint_port(endpoint, rank) == wanted
    assert EventPublisher.offset_endpoint_port(endpoint, rank) == wanted


@pytest.mark.parametrize("endpoint", ["tcp://*:65535", "tcp://host", "udp://x:1", "tcp://x:port", "tcp://:5"])
def test_an_endpoint_that_cannot_be_is_refused(endpoint):
    with pytest.raises(InvalidConfig, match="endpoint"):
        offset_endpoint_port(endpoint, 1)


def test_bind_or_connect():
    bound = ["tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "ipc://x", "inproc://x", "tcp://127.0.0.1:0"]
    assert all(binds(endpoint) for endpoint in bound)
    assert not binds("tcp://10.0.0.1:5557")
    assert binds("tcp://10.0.0.1:5557", bind=True)
    assert not binds("tcp://*:5557", bind=False)


def test_what_others_reach():
    assert reachable("tcp://0.0.0.0:77", "10.1.2.3") == "tcp://10.1.2.3:77"
    assert reachable("tcp://127.0.0.1:77", "10.1.2.3") == "tcp://127.0.0.1:77"


def test_topics():
    def topic(template, **values):
        return fill(template, endpoint="tcp://10.0.0.1:5558", dp_rank=1, values=values)

    assert topic("") == ""
    assert topic("kv@{ip:port}@{model}", model="m/x") == "kv@10.0.0.1:5558@m/x"
    assert topic("kv@{ip:port}@{model}", model="m", **{"ip:port": "10.0.0.9:8000"}) == "kv@10.0.0.9:8000@m"
    assert topic("{ip}/{port}/{dp_rank}") == "10.0.0.1/5558/1"
    with pytest.raises(InvalidConfig, match="topic_values"):
        topic("kv@{ip:port}@{model}")
    with pytest.raises(InvalidConfig, match="unknown field"):
        topic("{pod}")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "no JSON"),
        ("[]", "JSON object"),
        ('{"publisher": "kafka"}', "known are null, zmq"),
        ('{"publisher": "zmq", "endpont": "x"}', "did you mean 'endpoint'"),
        ('{"publisher": "zmq", "hwm": "many"}', "hwm"),
        ('{"publisher": "zmq", "buffer_steps": 0}', "buffer_steps"),
        ('{"publisher": "zmq", "profile": "xml"}', "wire profile"),
        ('{"publisher": "zmq", "first_seq": "one"}', "first_seq"),
        ('{"publisher": "zmq", "endpoint": "tcp://127.0.0.1:0", "topic": "{model}"}', "topic_values"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(config, says):
    with pytest.raises(InvalidConfig, match=says):
        EventPublisherFactory.create(config)


@pytest.mark.parametrize("config", [None, "", "{}", '{"publisher": "null"}', '{"enable_kv_cache_events": false}'])
def test_off(config):
    publisher = EventPublisherFactory.create(config, 2)
    assert isinstance(publisher, NullEventPublisher)
    publisher.publish(batch())
    assert publisher.describe_local_source(4) is None
    assert publisher.attn_dp_rank == 2
    publisher.shutdown()


def test_sglangs_and_vllms_configurations_are_understood():
    sglang = '{"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5558","bind":null,"buffer_steps":10,"hwm":1,"max_queue_size":1,"topic":"t","format":"dynamo"}'
    assert KVEventsConfig.from_cli(sglang).wire_profile == "dynamo"
    assert KVEventsConfig.from_cli('{"enable_kv_cache_events": true, "publisher": "zmq"}').wire_profile == "map"


def test_a_publisher_of_ones_own():
    class Mine(NullEventPublisher):
        def __init__(self, attn_dp_rank, colour):
            super().__init__(attn_dp_rank)
            self.colour = colour

    register_publisher("mine-for-a-test", Mine)
    made = EventPublisherFactory.create('{"publisher": "mine-for-a-test", "colour": "red"}', 3)
    assert isinstance(made, Mine)
    assert (made.attn_dp_rank, made.colour) == (3, "red")
    for taken in ("mine-for-a-test", "zmq", "null"):
        with pytest.raises(KeyError, match="registered already"):
            register_publisher(taken, Mine)


def test_a_later_life_has_higher_numbers_that_fit_sgl_routers_signed_ones():
    first = first_of_life(NOW)
    assert first_of_life(NOW + 1) > first + 4_000_000
    assert first < 2**63
    assert epoch_of(first + 5) == NOW
    assert begins_a_life(first)
    assert begins_a_life(0)
    assert not begins_a_life(first + 1)


def test_what_a_number_means():
    sequence = Sequence()
    first, later = first_of_life(NOW), first_of_life(NOW + 60_000)
    kinds = [sequence.take(seq).kind for seq in (first, first + 1, first + 5, first + 5, later + 2, later + 3, first)]
    assert kinds == ["first", "next", "gap", "stale", "restart", "next", "stale"]
    from_zero = Sequence()
    assert [from_zero.take(seq).kind for seq in (0, 1, 9, 0, 1)] == ["first", "next", "gap", "restart", "next"]


@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 25))
def test_a_ring_gives_what_it_has_and_says_what_is_gone(capacity, count, start):
    ring = ReplayRing(capacity, 100)
    for seq in range(100, 100 + count):
        ring.append(seq, b"%d" % seq)
    kept = ring.since(95 + start)
    all_kept = range(100 + max(count - capacity, 0), 100 + count)
    assert [seq for seq, _ in kept.batches] == [seq for seq in all_kept if seq >= 95 + start]
    assert kept.first == (all_kept[0] if count else 100)
    assert kept.evicted == (all_kept[0] - 1 if count > capacity else None)


def answers_of(count: int, capacity: int = 3, begins: int = 1000) -> tuple[Answers, list[AllBlocksCleared]]:
    ring, notes = ReplayRing(capacity, begins), []
    for seq in range(begins, begins + count):
        ring.append(seq, b"x")

    def marker(event):
        notes.append(event)
        return b"note"

    return Answers(ring, begins, 77, marker), notes


def test_a_whole_answer_has_no_note():
    answers, notes = answers_of(3)
    for start, wanted in (
        (0, [1000, 1001, 1002]),
        (1000, [1000, 1001, 1002]),
        (1002, [1002]),
        (1003, []),
        (2**64 - 1, []),
    ):
        assert [seq for seq, _ in answers.to(start).batches] == wanted
    assert notes == []


def test_a_truncated_answer_says_so_in_front():
    answers, notes = answers_of(5)
    for start, lost in ((0, 2), (1000, 2), (1001, 1)):
        answer = answers.to(start)
        assert answer.batches[0] == (1001, b"note")
        assert [seq for seq, _ in answer.batches[1:]] == [1002, 1003, 1004]
        assert notes.pop() == AllBlocksCleared("truncated", lost_batches=lost, epoch=77)
    assert answers.to(1002).reason == ""


def test_a_consumer_of_an_earlier_life_is_told_to_forget():
    for count in (0, 2):
        answers, notes = answers_of(count)
        answer = answers.to(500)
        assert answer.batches[0] == (999, b"note")
        assert [seq for seq, _ in answer.batches[1:]] == list(range(1000, 1000 + count))
        assert notes == [AllBlocksCleared("restart", epoch=77)]


def test_a_full_queue_drops_its_oldest_and_counts():
    queue = DroppingQueue(2)
    for block in range(5):
        queue.put(batch(stored(block), stored(block + 100)))
    assert queue.loss == Loss(3, 6)
    queue.end()
    taken = [queue.get(1.0) for _ in range(3)]
    assert taken == [batch(stored(3), stored(103)), batch(stored(4), stored(104)), None]


def test_the_end_is_never_dropped():
    queue = DroppingQueue(1)
    queue.end()
    queue.put(batch())
    assert queue.get(1.0) is None


def test_the_public_names_are_the_packages_own():
    import kv_core
    import kv_core.events

    for name in (
        "BlockStored",
        "KVEventBatch",
        "EventPublisherFactory",
        "SchedulerKvEventsPublisher",
        "ZmqEventPublisher",
    ):
        assert getattr(kv_core, name) is getattr(kv_core.events, name)

"""The publisher over real sockets: frames, ports, replay, restart, slow and stopped subscribers, shutdown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import zmq

from core.tests.events.support import LIMIT_S, LOOPBACK, batch, join, publishing, removed, seqs, stored, until
from kv_core.contract.failures import InvalidConfig
from kv_core.events import (
    AllBlocksCleared,
    EventPublisherFactory,
    Message,
    PublisherClosed,
    ReplayError,
    StreamChecker,
    Subscription,
    ZmqEventPublisher,
    decode_batch,
    make_profile,
    replay,
)
from kv_core.events.follow import follow
from kv_core.events.numbers import END_SEQ, first_of_life


def heard(subscription: Subscription) -> Message:
    message = subscription.receive(LIMIT_S)
    assert message is not None
    return message


def asked(publisher: ZmqEventPublisher, start: int) -> Iterator[Message]:
    assert publisher.replay_endpoint is not None
    return replay(publisher.replay_endpoint, start)


def unwanted(error: Exception) -> None:
    raise error


def payloads(messages):
    return [decode_batch(message.frames[2]).batch.events for message in messages]


def test_frames_are_topic_number_payload():
    with (
        publishing(topic="kv", attn_dp_rank=2) as publisher,
        Subscription(publisher.endpoint, topic="kv") as subscription,
    ):
        following = join(subscription, publisher)
        publisher.publish(batch(stored(7)))
        message = heard(subscription)
        wanted = batch(stored(7))
        wanted.attn_dp_rank = 2
        assert message.frames == [b"kv", following.to_bytes(8, "big"), make_profile("map").encode(wanted)]


def test_first_number_is_zero_where_that_is_asked_for():
    with publishing(first_seq="zero") as publisher:
        publisher.publish(batch(stored(1)))
        until(lambda: publisher.stats()["published_batches"] == 1)
        assert seqs(asked(publisher, 0)) == [0]


def test_described_is_what_was_bound():
    config = '{"publisher":"zmq","endpoint":"tcp://*:0","replay_endpoint":"tcp://127.0.0.1:0","topic":"kv@{ip:port}@{model}","topic_values":{"model":"m"},"profile":"legacy"}'
    publisher = EventPublisherFactory.create(config, 3)
    assert isinstance(publisher, ZmqEventPublisher)
    try:
        source = publisher.describe_local_source(16)
        port = source["endpoint"].rpartition(":")[2]
        assert source == {
            "dp_rank": 3, "endpoint": f"tcp://127.0.0.1:{port}", "topic": f"kv@127.0.0.1:{port}@m", "block_size": 16,
            "replay_endpoint": publisher.replay_endpoint,
        }  # fmt: skip
        assert int(port) > 0
        with Subscription(source["endpoint"], topic=source["topic"]) as subscription:
            join(subscription, publisher)
            publisher.publish(batch(stored(-1, medium="GPU")))
            assert heard(subscription).frames[2][-1:] == b"\x03"
    finally:
        publisher.shutdown()


def test_a_port_that_is_taken_is_an_error_at_start_and_takes_nothing():
    with publishing() as first:
        with pytest.raises(InvalidConfig, match="choose another port"):
            ZmqEventPublisher(endpoint=first.endpoint, bind=True)
        free = publishing_at_once()
        with pytest.raises(InvalidConfig, match="cannot bind"):
            ZmqEventPublisher(endpoint=free, bind=True, replay_endpoint=first.endpoint)
        with publishing(endpoint=free, bind=True):
            pass  # the PUB socket of the failed one has let go


def publishing_at_once() -> str:
    """An endpoint that was free a moment ago."""
    with publishing() as publisher:
        return publisher.endpoint


def test_ranks_have_ports_of_their_own():
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.bind(LOOPBACK)
    base = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    socket.close(linger=0)
    try:
        with publishing(endpoint=base, bind=True, attn_dp_rank=1, replay_endpoint=None) as publisher:
            assert int(publisher.endpoint.rpartition(":")[2]) == int(base.rpartition(":")[2]) + 1
    except InvalidConfig as error:
        pytest.skip(f"somebody else has the next port: {error}")


def test_a_connecting_publisher():
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.bind(LOOPBACK)
    with publishing(
        endpoint=socket.getsockopt_string(zmq.LAST_ENDPOINT), bind=False, replay_endpoint=None
    ) as publisher:
        while not socket.poll(20):
            publisher.publish(batch(stored(1)))
        assert len(socket.recv_multipart()) == 3
    socket.close(linger=0)


def test_without_a_subscriber_nothing_waits_and_replay_has_it_all():
    with publishing(buffer_steps=50) as publisher:
        for block in range(50):
            publisher.publish(batch(stored(block)))
        until(lambda: publisher.stats()["published_batches"] == 50)
        messages = list(asked(publisher, 0))
        assert seqs(messages) == list(range(publisher.first_seq, publisher.first_seq + 50))
        assert [events[0].block_hashes for events in payloads(messages)] == [[block] for block in range(50)]


def test_a_late_reader_of_a_full_ring_gets_all_10000_however_slowly_it_reads():
    with publishing() as publisher:
        for block in range(10_000):
            publisher.publish(batch(stored(block)))
        until(lambda: publisher.stats()["published_batches"] == 10_000)
        context = zmq.Context()
        reader = context.socket(zmq.DEALER)
        reader.setsockopt(
            zmq.RCVHWM, 1
        )  # it takes hardly anything in advance, so that the answer waits at the publisher
        reader.setsockopt(zmq.RCVBUF, 4096)
        reader.connect(publisher.replay_endpoint or "")
        for _ in range(3):  # three whole rings are more than the socket's queue holds
            reader.send_multipart([b"", (0).to_bytes(8, "big")])
        until(lambda: publisher.stats()["replay_requests"] == 3)
        for _ in range(3):
            got = []
            while (frames := reader.recv_multipart())[2] != END_SEQ:
                got.append(int.from_bytes(frames[2], "big"))
            assert got == list(range(publisher.first_seq, publisher.first_seq + 10_000))
        reader.close(linger=0)
        context.term()
        assert publisher.stats()["incomplete_replays"] == 0


def test_a_reader_behind_the_ring_is_told_so():
    with publishing(buffer_steps=10) as publisher:
        for block in range(25):
            publisher.publish(batch(stored(block)))
        until(lambda: publisher.stats()["published_batches"] == 25)
        first, *rest = asked(publisher, publisher.first_seq + 4)
        assert payloads([first]) == [[AllBlocksCleared("truncated", lost_batches=11, epoch=publisher.epoch)]]
        assert seqs([first, *rest]) == list(range(publisher.first_seq + 14, publisher.first_seq + 25))
        assert publisher.stats()["incomplete_replays"] == 1


@pytest.mark.parametrize("request_", [[b"", b"short"], [b"", b"x" * 8, b"more"], [b"full", b"12345678"], [b""]])
def test_a_malformed_request_is_answered_with_the_end(request_):
    with publishing() as publisher:
        publisher.publish(batch(stored(1)))
        reader: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        reader.connect(publisher.replay_endpoint or "")
        reader.send_multipart(request_)
        assert reader.poll(int(LIMIT_S * 1000))
        assert reader.recv_multipart()[-3:] == [b"", END_SEQ, b""]
        reader.close(linger=0)
        assert publisher.stats()["troubles"] == 1


def test_a_reader_that_goes_away_in_the_middle_harms_nobody():
    with publishing() as publisher:
        for block in range(2_000):
            publisher.publish(batch(stored(block, tokens=range(200))))
        until(lambda: publisher.stats()["published_batches"] == 2_000)
        for _ in range(3):
            messages = asked(publisher, 0)
            next(messages)
            del messages
        assert len(list(asked(publisher, 0))) == 2_000


def test_no_answer_is_an_error():
    with publishing() as publisher, pytest.raises(ReplayError, match="is it a replay endpoint"):
        list(replay(publisher.endpoint, 0, timeout_s=0.2))


def test_a_subscriber_that_does_not_read_sees_a_gap_that_replay_fills():
    context = zmq.Context()
    with (
        publishing(hwm=5, buffer_steps=5_000) as publisher,
        Subscription(publisher.endpoint, hwm=5, context=context) as subscription,
    ):
        subscription.socket.setsockopt(zmq.RCVBUF, 4096)
        following = join(subscription, publisher)
        for block in range(1_000):
            publisher.publish(batch(stored(block, tokens=range(1_500))))
        until(lambda: publisher.stats()["queued"] == 0)
        checker, got = StreamChecker(), []
        last = publisher.first_seq + publisher.stats()["published_batches"] - 1
        while (message := subscription.receive(0.5)) is not None:
            got.append(message)
            checker.feed(message.frames)
        assert checker.missing > 0  # the socket's queues were full
        publisher.publish(batch(removed(1)))
        until(lambda: publisher.stats()["queued"] == 0)
        lines = iter(follow(subscription, publisher.replay_endpoint, ended=lambda: False, trouble=unwanted))
        filled: list[Message] = []
        while not filled or seqs(filled)[-1] < last + 1:
            filled.append(next(lines))
        assert seqs(filled)[-(1_001):] == list(range(following, last + 2))
        assert publisher.stats()["lost_batches"] == 0
    context.term()


STOPPED = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.RCVHWM, 10)
socket.setsockopt(zmq.SUBSCRIBE, b"")
socket.connect(sys.argv[1])
socket.recv_multipart()
print("joined", flush=True)
while True:
    print(int.from_bytes(socket.recv_multipart()[1], "big"), flush=True)
"""


def test_a_stopped_subscriber_holds_nobody_up():
    with publishing(hwm=10) as publisher:
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPED, publisher.endpoint], stdout=subprocess.PIPE, text=True
        )
        output = process.stdout
        assert output is not None
        try:
            joined = threading.Event()

            def read():
                assert output.readline() == "joined\n"
                joined.set()

            reader = threading.Thread(target=read)
            reader.start()
            while not joined.wait(0.02):
                publisher.publish(batch(stored(0)))
            reader.join()
            os.kill(process.pid, signal.SIGSTOP)
            before = publisher.stats()["published_batches"]
            for block in range(5_000):
                publisher.publish(batch(stored(block, tokens=range(300))))
            until(lambda: publisher.stats()["published_batches"] == before + 5_000, "all batches published")
            assert publisher.stats()["lost_batches"] == 0
            assert len(list(asked(publisher, publisher.first_seq + before))) == 5_000
            os.kill(process.pid, signal.SIGCONT)
            last = None
            while last is None or last < publisher.first_seq + before + 4_000:  # it comes back and hears the newest
                publisher.publish(batch(stored(1)))
                last = int(output.readline())
        finally:
            process.kill()
            process.wait()
            output.close()


def test_a_restart_is_a_gap_whose_replay_begins_with_a_clearing():
    with publishing(replay_endpoint=None) as first:
        pub = first.endpoint
        with Subscription(pub) as subscription:
            last = join(subscription, first)
            first.publish(batch(stored(1)))
            assert seqs([heard(subscription)]) == [last]
            first.shutdown()
            with publishing(endpoint=pub, bind=True) as second:
                assert second.first_seq > last
                second.publish(batch(stored(2)))
                checker = StreamChecker()
                checker.feed([b"", last.to_bytes(8, "big"), make_profile("map").encode(batch(stored(1)))])
                while (message := subscription.receive(0.02)) is None:  # until it has connected again
                    second.publish(batch(stored(3)))
                assert checker.wants(message.frames) == last + 1
                answer = list(asked(second, last + 1))
                assert payloads(answer)[0] == [AllBlocksCleared("restart", epoch=second.epoch)]
                assert seqs(answer)[1] == second.first_seq == first_of_life(second.epoch)
                for one in answer:
                    checker.feed(one.frames, replayed=True)
                checker.feed(message.frames)
                assert checker.lives == 2
                assert not checker.failed()


def test_a_restart_in_the_next_millisecond_is_one():
    millisecond, profile = 1_700_000_000_000, make_profile("map")
    last, first = first_of_life(millisecond), first_of_life(millisecond + 1)
    clearing = AllBlocksCleared("restart", epoch=millisecond + 1)
    checker = StreamChecker()
    for seq, event in ((last, stored(1)), (first - 1, clearing), (first, stored(2))):
        checker.feed([b"", seq.to_bytes(8, "big"), profile.encode(batch(event))], replayed=seq == first - 1)
    assert checker.lives == 2
    assert not checker.failed()


def test_inproc():
    with (
        publishing(endpoint="inproc://kv-events-test", replay_endpoint=None) as publisher,
        Subscription(publisher.endpoint) as subscription,
    ):
        join(subscription, publisher)


def test_shutdown_sends_what_waits_joins_and_is_idempotent():
    before = threading.active_count()
    with publishing() as publisher, Subscription(publisher.endpoint) as subscription:
        following = join(subscription, publisher)
        for block in range(1_000):
            publisher.publish(batch(stored(block)))
        publisher.shutdown()
        publisher.shutdown()
        assert threading.active_count() == before
        got = [heard(subscription) for _ in range(1_000)]
        assert seqs(got) == list(range(following, following + 1_000))
        with pytest.raises(PublisherClosed, match="shut down"):
            publisher.publish(batch())


def test_a_process_that_forgets_shutdown_ends():
    code = (
        "from kv_core.events import *\n"
        "p = ZmqEventPublisher(endpoint='tcp://127.0.0.1:0', replay_endpoint='tcp://127.0.0.1:0')\n"
        "p.publish(KVEventBatch(1.0, [AllBlocksCleared()]))\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)

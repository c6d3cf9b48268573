"""What a scheduler calls."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import zmq

from core.tests.events.support import stored
from kv_core.events import KVEventBatch, KvMetrics, NullEventPublisher, SchedulerKvEventsPublisher, ZmqEventPublisher

CONFIG = '{"publisher": "zmq", "endpoint": "tcp://127.0.0.1:0"}'


class Cache:
    def __init__(self):
        self.events = []

    def take_events(self):
        taken, self.events = self.events, []
        return taken


class Noting(NullEventPublisher):
    def __init__(self, rank=0):
        super().__init__(rank)
        self.batches: list[KVEventBatch] = []
        self.closed = 0

    def publish(self, events):
        self.batches.append(events)

    def shutdown(self):
        self.closed += 1


def component(config=CONFIG, *, create=None, **more):
    made: list[Noting] = []

    def noting(_config, rank):
        made.append(Noting(rank))
        return made[-1]

    ranks = {"attn_tp_rank": 0, "attn_cp_rank": 0, "attn_dp_rank": 5} | more
    cache = ranks.setdefault("tree_cache", Cache())
    scheduler = SchedulerKvEventsPublisher(
        kv_events_config=config, create=create or noting, wall_clock=lambda: 7.0, **ranks
    )
    return scheduler, cache, made


@pytest.mark.parametrize("ranks", [{"attn_tp_rank": 1}, {"attn_cp_rank": 1}, {"pp_rank": 1}])
def test_only_rank_0_publishes(ranks):
    scheduler, cache, made = component(**ranks)
    cache.events = [stored(1)]
    scheduler.publish_kv_events()
    scheduler.emit_kv_metrics()
    assert (scheduler.enable_kv_cache_events, made, len(cache.events)) == (False, [], 1)


@pytest.mark.parametrize("config", [None, ""])
def test_off_without_a_configuration(config):
    scheduler, _, made = component(config)
    assert (scheduler.enable_kv_cache_events, made) == (False, [])


def test_a_pass_becomes_one_batch_and_nothing_becomes_none():
    scheduler, cache, [publisher] = component()
    scheduler.publish_kv_events()
    cache.events = [stored(1), stored(2, 1)]
    scheduler.publish_kv_events()
    scheduler.publish_kv_events()
    assert publisher.batches == [KVEventBatch(7.0, [stored(1), stored(2, 1)])]
    assert publisher.attn_dp_rank == 5


def test_metrics_go_over_the_socket_as_a_map():
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    ours, theirs = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    theirs.bind("inproc://kv-metrics-test")
    ours.connect("inproc://kv-metrics-test")
    stats = SimpleNamespace(
        num_running_reqs=SimpleNamespace(total=3), num_queue_reqs=4, token_usage=0.5, cache_hit_rate=0.25
    )
    scheduler, _, _ = component(
        dp_rank=2, send_metrics_from_scheduler=ours, max_running_requests=8, max_total_num_tokens=100,
        get_stats=lambda: stats,
    )  # fmt: skip
    scheduler.emit_kv_metrics()
    assert msgspec.msgpack.decode(theirs.recv(), type=KvMetrics) == KvMetrics(3, 8, 50, 100, 4, 0.5, 0.25, 2)
    ours.close(linger=0)
    theirs.close(linger=0)
    scheduler.emit_kv_metrics()  # a closed socket is no error


def test_a_peer_that_is_not_there_costs_the_message_and_no_time():
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(
        zmq.PUSH
    )  # connected to nobody: a blocking send would wait for ever
    stats = SimpleNamespace(num_running_reqs=0, num_queue_reqs=0, token_usage=0.0, cache_hit_rate=0.0)
    scheduler, _, _ = component(send_metrics_from_scheduler=socket, get_stats=lambda: stats)
    scheduler.emit_kv_metrics()
    assert scheduler.metrics_not_sent == 1
    socket.close(linger=0)


def test_init_again_shuts_the_old_one_down():
    scheduler, cache, made = component()
    scheduler.init_kv_events(CONFIG)
    assert [publisher.closed for publisher in made] == [1, 0]
    scheduler.shutdown()
    scheduler.shutdown()
    cache.events = [stored(1)]
    scheduler.publish_kv_events()
    assert [publisher.closed for publisher in made] == [1, 1]
    assert not made[1].batches


def test_with_the_real_factory():
    scheduler = SchedulerKvEventsPublisher(
        kv_events_config=CONFIG, attn_tp_rank=0, attn_cp_rank=0, attn_dp_rank=0, tree_cache=Cache()
    )
    assert isinstance(scheduler.kv_event_publisher, ZmqEventPublisher)
    scheduler.shutdown()

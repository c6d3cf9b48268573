"""The table of routes and that of rooms, with time as a number."""

from __future__ import annotations

from itertools import product

import pytest

from core.tests.bootstrap.support import RANK_ZERO, registration
from kv_core.runtime.bootstrap.table import DpRankTable, RequestRefused, RouteTable

SIZES = (2, 3, 1, 2)
EVERY = list(product(*(range(size) for size in SIZES)))


def rank(key, **changes):
    return registration(ranks=key, sizes=SIZES, instance_id="-".join(map(str, key)), **changes)


def test_readiness_is_a_set_of_ranks():
    table = RouteTable(10.0)
    for step in range(len(EVERY)):
        table.put(rank(EVERY[0]), float(step) / 100)  # as often as there are ranks, and it is still one rank
    assert len(table) == 1
    assert not table.ready
    with pytest.raises(RequestRefused) as caught:
        table.info("server")
    assert caught.value.status == 503
    assert caught.value.body.missing_ranks == EVERY[1:]
    assert caught.value.body.missing_count == len(EVERY) - 1
    for key in EVERY[1:]:
        assert not table.ready
        table.put(rank(key), 1.0)
    assert table.ready
    assert table.info("server").route().ranks.keys() == set(EVERY)


def test_the_missing_ranks_are_counted_but_only_some_are_named():
    table = RouteTable(10.0)
    table.put(registration(sizes=(64, 64, 4, 4)), 0.0)
    with pytest.raises(RequestRefused) as caught:
        table.require_ready()
    assert caught.value.body.missing_count == 65_535
    assert len(caught.value.body.missing_ranks) == 64


def test_renewals_keep_a_rank_and_their_absence_drops_it():
    table = RouteTable(10.0)
    table.put(registration(), 0.0)
    version = table.version
    for step in range(1, 6):
        table.put(registration(progress_age_s=float(step)), 8.0 * step)
    assert table.version == version
    assert table.ready
    assert table.expire(50.0) == 0
    assert table.expire(50.01) == 1
    assert not table.ready
    assert len(table) == 0
    assert table.version > version


def test_expiry_takes_the_stale_ones_only():
    table = RouteTable(10.0)
    for at, key in enumerate(EVERY):
        table.put(rank(key), float(at))
    table.put(rank(EVERY[0]), 11.0)
    assert table.expire(12.5) == 2
    with pytest.raises(RequestRefused) as caught:
        table.require_ready()
    assert caught.value.body.missing_ranks == EVERY[1:3]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"sizes": (2, 1, 1, 1)}, "sizes: (1, 1, 1, 1) here, (2, 1, 1, 1) in the registration"),
        ({"page_size": 32}, "page_size: 16 here, 32 in the registration"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: 'bfloat16' here, 'fp8' in the registration"),
        ({"kv_layout": "HND"}, "kv_layout: 'NHD' here, 'HND' in the registration"),
        ({"backend": "other"}, "backend: 'some' here, 'other' in the registration"),
        ({"protocol_version": 2}, "protocol_version: 1 here, 2 in the registration"),
    ],
)
def test_another_shape_is_refused_with_both_values_while_the_first_is_alive(change, shown):
    table = RouteTable(10.0)
    table.put(registration(), 0.0)
    with pytest.raises(RequestRefused) as caught:
        table.put(registration(instance_id="b", **change), 5.0)
    assert caught.value.status == 409
    assert shown in caught.value.body.error
    table.put(registration(instance_id="b", **change), 10.01)  # the refusal did not renew anything
    assert table.health("server", 10.01).instances() == {RANK_ZERO: "b"}


def test_a_refusal_lists_every_field_that_differs():
    table = RouteTable(10.0)
    table.put(registration(), 0.0)
    with pytest.raises(RequestRefused) as caught:
        table.put(registration(page_size=1, kv_layout="x", backend="y"), 0.0)
    assert caught.value.body.error.count(" in the registration") == 3


def test_another_shape_is_accepted_after_a_goodbye():
    table = RouteTable(10.0)
    table.put(registration(), 0.0)
    assert table.remove("unknown", 0.0) == 0
    assert table.remove("instance-a", 0.0) == 1
    table.put(registration(instance_id="b", page_size=64), 0.0)
    assert table.ready


def test_a_new_instance_replaces_the_old_one_for_as_long_as_it_lives():
    table = RouteTable(10.0)
    table.put(registration(instance_id="old"), 0.0)
    version = table.version
    table.put(registration(instance_id="new", rank_port=7), 1.0)
    assert table.version > version
    assert table.rank(RANK_ZERO).rank_port == 7
    with pytest.raises(RequestRefused, match="taken over by the newer instance new") as caught:
        table.put(registration(instance_id="old"), 2.0)
    assert caught.value.status == 409
    assert table.remove("old", 2.0) == 0  # a late goodbye of the old one doesn't harm the new one
    table.put(registration(instance_id="old"), 11.5)  # the new one has lapsed
    assert table.rank(RANK_ZERO).instance_id == "old"


def test_an_unknown_rank_is_404_but_only_once_all_are_there():
    table = RouteTable(10.0)
    with pytest.raises(RequestRefused, match="no prefill rank is registered") as caught:
        table.rank((0, 0, 0, 5))
    assert caught.value.status == 503
    table.put(registration(), 0.0)
    with pytest.raises(RequestRefused) as caught:
        table.rank((0, 0, 0, 5))
    assert caught.value.status == 404


def test_health_tells_ages_as_of_now():
    table = RouteTable(10.0)
    table.put(registration(progress_age_s=3.0), 100.0)
    report = table.health("server", 104.0)
    assert (report.ranks[0].age_s, report.ranks[0].progress_age_s) == (4.0, 7.0)
    assert (report.status, report.ready, report.instance_id) == ("ok", True, "server")
    assert RouteTable(1.0).health("server", 0.0).status == "waiting"


def test_rooms_are_bounded_and_forgotten():
    rooms = DpRankTable(ttl_s=10.0, max_rooms=3)
    for room in range(3):
        rooms.put(room, room, float(room))
    with pytest.raises(RequestRefused) as caught:
        rooms.put(3, 0, 9.0)
    assert caught.value.status == 429
    rooms.put(0, 7, 9.0)  # a known room needs no new place
    rooms.put(3, 3, 11.5)  # room 1 has lapsed, room 0 was renewed
    assert rooms.query([0, 1, 2, 3, 4], 11.5) == {"0": 7, "2": 2, "3": 3}
    assert rooms.expire(100.0) == 3
    assert len(rooms) == 0

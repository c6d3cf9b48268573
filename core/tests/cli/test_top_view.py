"""From expositions to the numbers of ``kv-core top``: growth, restarts, percentiles, sums over endpoints. No clock, no socket."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import pairwise
from json import dumps

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from core.tests.cli.top_support import Process
from kv_core.cli.top import screen
from kv_core.cli.top.quantiles import QUANTILES, spread
from kv_core.cli.top.readings import GROWING, NoMetricsError, parse
from kv_core.cli.top.summing import Watched, in_use, roles_of
from kv_core.cli.top.view import BootstrapView, EndpointRow, RankRow, RoleView, View
from kv_core.cli.top.window import History, growth, restarted
from kv_core.contract.enums import FailureCode, FailureStage, Role

P, D = Role.PREFILL, Role.DECODE


def watched(*histories: History) -> list[Watched]:
    return [Watched(history.last, history.growth()) for history in histories]


def only(histories: list[History], role: str) -> RoleView:
    (view,) = [view for view in roles_of(watched(*histories)) if view.role == role]
    return view


def test_rates_shares_and_percentiles_of_a_window():
    process, history = Process(P), History(60.0)
    process.succeed(P, 7)  # before the window
    history.add(process.read(100.0))
    process.succeed(P, 10, nbytes=4_000, wire_s=0.002, total_s=0.004)
    process.succeed(P, 10, nbytes=4_000, wire_s=0.002, total_s=0.2)
    process.fail(P, FailureStage.TRANSFER, FailureCode.TIMEOUT, 5)
    process.fail(P, FailureStage.QUEUED, FailureCode.ABORTED_REMOTE, 2)
    process.lose_peer(P)
    history.add(process.read(104.0))
    view = only([history], "prefill")
    assert view.per_second == {"opened": 27 / 4, "success": 5.0, "aborted": 0.5, "failed": 1.25}
    assert view.failed_share == pytest.approx(0.2)
    assert view.goodput == 20_000.0
    assert view.wire_rate == pytest.approx(2_000_000.0)
    assert view.latency_s is not None
    room = view.latency_s["room"]
    assert room.count == 20
    assert room.p50 == pytest.approx(0.005)
    assert room.p90 == pytest.approx(0.1 + 0.15 * 0.8)
    assert view.latency_s["bootstrap"].p50 is None, "nothing was observed"
    rows = [(row.stage, row.reason, row.window, row.total) for row in view.failures]
    assert rows == [("transfer", "timeout", 5, 5), ("queued", "aborted_remote", 2, 2)]
    assert view.rooms["moving"] == 3
    assert view.peers.now == 2
    assert view.peers.window == {"joined": 1, "lost: peer_lost": 1} == view.peers.total


def test_one_reading_has_totals_and_no_rates():
    process, history = Process(P), History(60.0)
    process.fail(P, FailureStage.TRANSFER, FailureCode.TIMEOUT)
    history.add(process.read(1.0))
    view = only([history], "prefill")
    assert (view.per_second, view.goodput, view.latency_s, view.failed_share) == (None, None, None, None)
    assert [(row.window, row.total) for row in view.failures] == [(None, 1)]


def test_a_restart_within_the_window_is_no_negative_rate_and_hides_nothing():
    """Also not where the new process has overtaken what the old one had at the window's beginning."""
    first, history = Process(P), History(60.0)
    first.succeed(P, 100)
    history.add(first.read(10.0))
    first.succeed(P, 30)
    history.add(first.read(11.0))
    second = Process(P)
    second.succeed(P, 20)
    history.add(second.read(12.0))
    second.succeed(P, 150)
    history.add(second.read(13.0))
    view = only([history], "prefill")
    assert history.restarts == 1
    assert view.per_second is not None
    assert view.per_second["success"] == pytest.approx((30 + 20 + 150) / 3)
    assert view.latency_s is not None
    assert view.latency_s["room"].count == 200


def test_a_restart_is_seen_by_any_counter_that_fell_or_is_gone():
    before, after = Process(P), Process(P)
    before.fail(P, FailureStage.TRANSFER, FailureCode.TIMEOUT)
    after.succeed(P, 50)
    assert restarted(before.read(1.0), after.read(2.0))
    assert restarted(before.read(1.0), Process(D).read(2.0)), "another role: what was counted is gone"
    assert not restarted(Process(P).read(1.0), before.read(2.0))
    rise = growth(before.read(1.0), after.read(2.0))
    assert sum(value for _, value in rise.of("kv_core_rooms_opened_total")) == 50


def test_the_window_moves_on():
    process, history = Process(P), History(3.0)
    for at in range(10):
        process.succeed(P, at)
        history.add(process.read(float(at)))
    found = history.growth()
    assert found is not None
    assert found.seconds == 3.0
    assert sum(value for _, value in found.of("kv_core_rooms_opened_total")) == 7 + 8 + 9
    history.add(process.read(1_000.0))
    found = history.growth()
    assert found is not None
    assert found.seconds == 991.0, "one step is always kept, however long it was"


def test_endpoints_are_added_up_by_role():
    one, two, both = Process(P), Process(D), Process(P, D)
    histories = [History(60.0) for _ in range(3)]
    for history, process, at in zip(histories, (one, two, both), (0.0, 0.5, 0.25), strict=True):
        history.add(process.read(at))
    one.succeed(P, 8)
    two.succeed(D, 8)
    both.succeed(P, 4)
    both.succeed(D, 6)
    for history, process, at in zip(histories, (one, two, both), (2.0, 4.5, 1.25), strict=True):
        history.add(process.read(at))
    prefill, decode = roles_of(watched(*histories))
    assert (prefill.role, prefill.endpoints, decode.role, decode.endpoints) == ("prefill", 2, "decode", 2)
    assert prefill.per_second is not None
    assert decode.per_second is not None
    assert prefill.per_second["success"] == 8 / 2 + 4 / 1, "each endpoint's own seconds"
    assert decode.per_second["success"] == 8 / 4 + 6 / 1
    assert prefill.rooms["moving"] == 3 + 3
    down = [Watched(None, None), *watched(histories[2])]
    assert [view.endpoints for view in roles_of(down)] == [1, 1]
    assert histories[0].last is not None
    assert in_use(histories[0].last) == {"roles": ("prefill",), "backends": ("test",), "transports": ("rdma mlx5",)}


def test_troubles_are_sentences():
    process, history = Process(P), History(60.0)
    process.live["quarantined"] = [{"pages": 12}]
    process.live["transfers"] = {"lost_submissions": 3}
    history.add(process.read(0.0))
    told = only([history], "prefill").troubles
    assert told == (
        "12 pages wait for the proof that nothing can touch them",
        "3 submissions of which the transport never said what became",
    )


# -- percentiles -------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.001, 1_000.0), min_size=1, max_size=60),
    st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12, unique=True).map(sorted),
)
def test_a_percentile_lies_in_the_bucket_of_the_value_of_its_rank(values: list[float], bounds: list[float]):
    buckets = [({"le": str(bound)}, float(sum(value <= bound for value in values))) for bound in [*bounds, math.inf]]
    found = spread(buckets)
    assert found.count == len(values)
    ordered = sorted(values)
    for name, share in QUANTILES.items():
        estimate = getattr(found, name)
        real = ordered[max(math.ceil(share * len(values) - 1e-9) - 1, 0)]
        edges = [0.0, *bounds]
        if name in found.beyond:
            assert estimate == bounds[-1]
            assert real > bounds[-1]
        else:
            low, high = next((low, high) for low, high in pairwise(edges) if low < real <= high)
            assert low <= estimate <= high


def test_percentiles_above_the_last_bound_say_so():
    found = spread([({"le": "1.0"}, 5.0), ({"le": "+Inf"}, 50.0)])
    assert (found.p50, found.p99, found.beyond) == (1.0, 1.0, ("p50", "p90", "p99"))
    assert spread([({"le": "1.0"}, 0.0), ({"le": "+Inf"}, 0.0)]).p50 is None
    assert spread([]).p50 is None


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["<html><body>hello</body></html>", "{", "a{b=} 1", "python_info 1\n", ""])
def test_what_is_no_exposition_of_ours_is_told(text: str):
    with pytest.raises(NoMetricsError, match="check the address"):
        parse(text, 0.0)


def test_what_only_grows_are_counters_and_histograms():
    assert {"kv_core_rooms_opened_total", "kv_core_wire_seconds_bucket", "kv_core_wire_seconds_sum"} <= GROWING
    assert not {"kv_core_rooms", "kv_core_backend_info"} & GROWING


# -- drawing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0"), (0.25, "0.25"), (7, "7"), (999, "999"), (1_000, "1 k"), (12_345, "12.3 k"), (1.5e6, "1.5 M"),
        (2e9, "2 G"), (3.25e12, "3.25 T"), (999_990, "1 M"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, text: str):
    assert screen.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0, "0 B/s"), (1234, "1.23 kB/s"), (5.5e9, "5.5 GB/s")])
def test_bytes(value: float | None, text: str):
    assert screen.nbytes(value, "B/s") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0 us"), (0.00012, "120 us"), (0.0125, "12.5 ms"), (2.5, "2.5 s"), (300, "300 s")],
)
def test_durations(value: float | None, text: str):
    assert screen.seconds(value) == text


def test_a_frame_shows_all_of_it_and_is_one_json_object():
    process, history = Process(P, D), History(60.0)
    history.add(process.read(0.0))
    process.succeed(P, 50, nbytes=1 << 20)
    process.fail(D, FailureStage.TRANSFER, FailureCode.TRANSPORT_ERROR, 3)
    process.lose_peer(D)
    history.add(process.read(2.0))
    view = View(
        2.0,
        (EndpointRow("a:1", "metrics", roles=("decode", "prefill"), transports=("rdma [mlx5]",)), EndpointRow("b:2", "metrics", "it is gone [x]")),
        roles_of(watched(history)),
        (BootstrapView("c:3", ready=False, ranks=(RankRow((1, 0, 0, 0), "0123456789abcdef", 0.2, 7.5),)),),
    )  # fmt: skip
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115 - it is drawn for the record
    console.print(screen.draw(view, "q ends"))
    shown = console.export_text()
    for text in (
        "2 endpoints", "over 2 s", "q ends", "it is gone [x]", "rdma [mlx5]", "waiting for ranks", "1, 0, 0, 0", "7.5 s ago",
        "prefill (1 endpoint)", "decode (1 endpoint)", "25", "26.2 MB/s", "transfer/transport_error", "lost: peer_lost 1",
        "moving 3",
    ):  # fmt: skip
        assert text in shown, f"{text!r} is not in\n{shown}"
    console.file.close()
    assert dumps(asdict(view))
    assert not view.all_up

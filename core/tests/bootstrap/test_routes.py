"""The wire's values: SGLang's names, and sentences that name the key."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import msgspec
import pytest

from core.tests.bootstrap.support import registration, wire
from kv_core.contract.failures import MessageError
from kv_core.runtime.bootstrap import addresses, answers, routes, table
from kv_core.runtime.bootstrap.routes import MAX_RANKS, PrefillServerInfo, RankEntry, decode_json, decode_registration

KEYS = [
    "attn_tp_rank", "attn_tp_size", "pp_rank", "pp_size", "attn_cp_rank", "attn_cp_size", "attn_dp_rank",
    "attn_dp_size", "rank_ip", "rank_port", "page_size", "kv_cache_dtype", "kv_layout", "instance_id", "backend",
    "protocol_version",
]  # fmt: skip


def decode(**changes):
    return decode_registration(json.dumps(wire(**changes)).encode())


def test_a_registration_survives_the_wire():
    one = registration(ranks=(1, 2, 0, 3), sizes=(2, 3, 1, 4), rank_ip="::1", progress_age_s=1.5)
    assert decode_registration(one.encode()) == one
    message = json.loads(one.encode())
    assert [message[f"{axis}_rank"] for axis in ("attn_tp", "pp", "attn_cp", "attn_dp")] == [1, 2, 0, 3]
    assert [message[f"{axis}_size"] for axis in ("attn_tp", "pp", "attn_cp", "attn_dp")] == [2, 3, 1, 4]


def test_unknown_keys_are_ignored():
    assert decode(system_dp_size=1, load_balance_method="x", nested={"a": [1]}) == registration()


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(key):
    with pytest.raises(MessageError, match=f"missing required field `{key}`"):
        decode(**{key: ...})


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, True, 1.5, [], {}, "", -1, 2**63, 10**30], ids=str)
def test_an_impossible_value_is_refused_by_its_key(key, value):
    with pytest.raises(MessageError, match=rf"\$\.{key}`"):
        decode(**{key: value})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attn_tp_rank": 1}, "tp rank 1 must lie in 0..0"),
        ({"pp_rank": 5, "pp_size": 5}, "pp rank 5 must lie in 0..4"),
        ({"attn_tp_size": 512, "pp_size": 512}, "at most 65536"),
        ({"rank_ip": "0.0.0.0"}, "advertised_host"),
        ({"rank_ip": "::"}, "advertised_host"),
        ({"rank_ip": "a b"}, "rank_ip"),
        ({"rank_ip": "1.2.3.4:5"}, "rank_ip"),
        ({"instance_id": "a\nb"}, "instance_id"),
        ({"kv_layout": "\x00"}, "kv_layout"),
        ({"backend": "x" * 129}, "backend"),
        ({"rank_port": 0}, "rank_port"),
        ({"rank_port": 65_536}, "rank_port"),
        ({"progress_age_s": -1.0}, "progress_age_s"),
        ({"progress_age_s": 1e300}, "progress_age_s"),
    ],
)
def test_values_that_make_no_sense_together(changes, sentence):
    with pytest.raises(MessageError, match=sentence.replace(".", r"\.")):
        decode(**changes)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b"[" * 60_000, b'{"x":' * 9_000, b"{}x"]
)
def test_what_is_no_registration(body):
    with pytest.raises(MessageError, match="the body of PUT /route"):
        decode_registration(body)


def info(**changes):
    values = {
        "attn_tp_size": 2, "attn_cp_size": 1, "dp_size": 1, "pp_size": 1, "page_size": 16, "kv_cache_dtype": "bfloat16",
        "kv_layout": "NHD", "backend": "some", "protocol_version": 1, "server_instance": "s",
        "ranks": [RankEntry(tp, 0, 0, 0, "127.0.0.1", 5 + tp, f"i{tp}") for tp in range(2)],
    }  # fmt: skip
    return PrefillServerInfo(**{**values, **changes})


def test_a_route_survives_the_wire():
    route = decode_json(msgspec.json.encode(info()), PrefillServerInfo, "x").route()
    assert route.sizes == (2, 1, 1, 1)
    assert {key: address.address for key, address in route.ranks.items()} == {
        (0, 0, 0, 0): "127.0.0.1:5",
        (1, 0, 0, 0): "127.0.0.1:6",
    }


def test_a_route_tells_the_versions_of_its_ranks_once_each():
    ranks = [("0.1.0", "1.5"), ("0.1.0", "1.5"), ("0.2.0", "1.5"), ("", "")]  # one is too old to tell
    known = table.RouteTable(10.0)
    for place, (core, backend) in enumerate(ranks):
        told = registration(
            sizes=(4, 1, 1, 1),
            ranks=(place, 0, 0, 0),
            instance_id=f"i{place}",
            core_version=core,
            backend_version=backend,
        )
        known.put(decode_registration(told.encode()), 0.0)
    route = decode_json(msgspec.json.encode(known.info("s")), PrefillServerInfo, "x").route()
    assert route.versions == (("0.1.0", "1.5"), ("0.2.0", "1.5"))
    assert decode_json(msgspec.json.encode(info()), PrefillServerInfo, "x").route().versions == ()


def test_a_server_that_lists_the_wrong_ranks_is_not_believed():
    good = info().ranks
    for ranks in ([], good[:1], [good[0], good[0]], [*good, good[0]], [good[0], RankEntry(2, 0, 0, 0, "h", 1, "i")]):
        with pytest.raises(MessageError, match="rank"):
            info(ranks=ranks).route()
    with pytest.raises(MessageError, match="advertised_host"):
        info(ranks=[good[0], RankEntry(1, 0, 0, 0, "0.0.0.0", 1, "i")]).route()


def test_the_largest_route_fits_the_answer_limit():
    one = RankEntry(MAX_RANKS - 1, 0, 0, 0, "255.255.255.255", 65_535, "f" * 32)
    assert len(msgspec.json.encode([one] * MAX_RANKS)) < answers.MAX_ANSWER_BYTES


def test_routes_and_tables_are_pure():
    for module in (routes, table, answers, addresses):
        tree = ast.parse(Path(inspect.getfile(module)).read_text())
        named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        named |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not named & {"socket", "aiohttp", "requests", "asyncio", "time", "threading", "random"}

"""``kv-core top`` as a process: against real ranks, servers that are none, and a keyboard."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import requests

from core.tests.cli.support import COMMAND, SMALL, Ran, environment, faults, kv_core
from core.tests.cli.top_support import LIMIT_S, Process, answering
from core.tests.observe.prometheus_server import demo
from kv_core import BootstrapServer, InvalidConfig, MetricsServer, Role
from kv_core.cli.top.endpoints import read_address
from kv_core.protocol.messages import PROTOCOL_VERSION
from kv_core.runtime.bootstrap import RankRegistration

pytest.importorskip("kv_fake", reason="the embedded backend is not installed")


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Both ranks of a demo under way: with faults that slow it down, or it would take all processors."""
    slow = faults(kind="delay", every=1, seconds=0.05)
    with demo(tmp_path_factory.mktemp("top"), *SMALL, *slow, "--requests", "1000000", "--concurrency", "2") as found:
        yield {role: found[role] for role in ("prefill", "decode")}


def once(*arguments: str) -> tuple[Ran, dict[str, Any]]:
    ran = kv_core("top", *arguments, "--once", "--json", "--interval", "0.5")
    return ran, ran.document


def test_both_ranks_of_a_demo(urls: dict[str, str]):
    ran, document = once(*urls.values())
    assert ran.status == 0, ran
    assert document["all_up"]
    assert 0.5 <= document["window_s"] < LIMIT_S
    assert [row["roles"] for row in document["endpoints"]] == [["prefill"], ["decode"]]
    assert all(row["backends"] == ["fake"] and row["transports"] for row in document["endpoints"])
    prefill, decode = document["roles"]
    for role in (prefill, decode):
        assert role["per_second"]["success"] > 0
        assert role["goodput"] > 0
        assert role["wire_rate"] > 0
        assert role["failed_share"] == 0
        assert role["failures"] == []
        assert role["peers"]["now"] == 1
        room, wire = role["latency_s"]["room"], role["latency_s"]["wire"]
        assert 0 < room["p50"] <= room["p90"] <= room["p99"]
        assert 0 < wire["p50"] <= room["p99"]


def test_what_is_down_is_a_row_and_hides_nobody(urls: dict[str, str]):
    with ExitStack() as stack:
        hung = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        addresses = [
            urls["prefill"].removeprefix("http://").removesuffix("/metrics"),
            closed_port(),
            f"127.0.0.1:{hung.getsockname()[1]}",
            stack.enter_context(answering(200, b"<html>hello</html>")),
            stack.enter_context(answering(500, b"")),
            stack.enter_context(answering(404, b"")),
            stack.enter_context(answering(200, b"python_info 1\n")),
        ]
        ran, document = once(*addresses, "--timeout", "2")
    assert ran.status == 1, "one endpoint at least did not answer"
    errors = [row["error"] for row in document["endpoints"]]
    expected = ("", "refused", "within 2 s", "no Prometheus text", "status 500", "status 404", "no kv_core_ metric")
    for error, text in zip(errors, expected, strict=True):
        assert text in error
    assert [role["role"] for role in document["roles"]] == ["prefill"]
    assert document["roles"][0]["per_second"]["success"] > 0


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_a_bootstrap_server_shows_its_ranks():
    rank = RankRegistration(
        instance_id="the-one", ranks=(0, 0, 0, 0), sizes=(1, 1, 1, 1), rank_ip="127.0.0.1", rank_port=1, page_size=16,
        kv_cache_dtype="bfloat16", kv_layout="x", backend="fake", protocol_version=PROTOCOL_VERSION, progress_age_s=7.5,
    )  # fmt: skip
    with BootstrapServer(host="127.0.0.1", port=0) as empty, BootstrapServer(host="127.0.0.1", port=0) as server:
        headers = {"Content-Type": "application/json"}
        put = requests.put(f"http://{server.address}/route", rank.encode(), headers=headers, timeout=LIMIT_S)
        assert put.status_code == 200, put.text
        ran, document = once(empty.address, f"http://{server.address}/health")
    assert ran.status == 0
    assert [(row["kind"], row["error"]) for row in document["endpoints"]] == [("bootstrap", "")] * 2
    nobody, found = document["bootstrap"]
    assert (nobody["ready"], nobody["ranks"], found["ready"]) == (False, [], True)
    (shown,) = found["ranks"]
    assert (shown["rank"], shown["instance_id"]) == ([0, 0, 0, 0], "the-one")
    assert 0 <= shown["renewed_s"] < LIMIT_S
    assert shown["progress_s"] == pytest.approx(7.5 + shown["renewed_s"])


def test_a_table_without_a_terminal(urls: dict[str, str]):
    ran = kv_core("top", *urls.values(), "--once", "--interval", "0.3", COLUMNS="160")
    assert ran.status == 0, ran
    for text in ("prefill (1 endpoint)", "decode (1 endpoint)", "goodput", "latency", "none since the start", "tcp"):
        assert text in ran.out


@pytest.mark.parametrize(
    "address", ["", "nohost", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "ftp://h:1/metrics", "http://", "h:80:90"]
)
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(InvalidConfig, match="no address of an endpoint"):
        read_address(address)


def test_a_bad_address_is_a_bad_argument():
    ran = kv_core("top", "127.0.0.1:1", "nohost", "--once")
    assert (ran.status, ran.out) == (2, "")
    assert "'nohost' is no address of an endpoint" in ran.err


def test_without_prometheus_client_it_says_what_to_install(tmp_path: Path):
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('gone', name='prometheus_client')\n")
    ran = kv_core("top", "127.0.0.1:1", "--once", site=tmp_path)
    assert ran.status == 2
    assert 'pip install "kv-core[metrics]"' in ran.err
    assert "Traceback" not in ran.err


# -- live --------------------------------------------------------------------------------------------------------------


def test_lines_of_json_until_it_is_interrupted_and_a_process_that_comes_back():
    process = Process(Role.PREFILL)
    with MetricsServer(registry=process.registry) as server:
        port = server.port
        top = start(f"127.0.0.1:{port}", "--json", "--interval", "0.1")
        assert frame(top)["all_up"]
    while frame(top)["all_up"]:
        pass  # until it has noticed
    with MetricsServer(port=port, registry=process.registry):
        process.succeed(Role.PREFILL, 10)
        while not (seen := frame(top))["all_up"]:
            pass
        assert seen["roles"][0]["per_second"]["success"] > 0, "what went on while it was away counts"
        top.send_signal(signal.SIGINT)
        rest, errors = top.communicate(timeout=LIMIT_S)
    assert (top.returncode, errors) == (0, "")
    assert all(json.loads(line) for line in rest.splitlines())


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "top", *arguments], env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def frame(top: subprocess.Popen[str]) -> dict[str, Any]:
    assert top.stdout is not None
    line = top.stdout.readline()
    assert line, top.stderr and top.stderr.read()
    return json.loads(line)


def test_a_reader_that_goes_away_ends_it():
    with MetricsServer(registry=Process(Role.PREFILL).registry) as server:
        top = start(f"127.0.0.1:{server.port}", "--json", "--interval", "0.1")
        frame(top)
        assert top.stdout is not None
        assert top.stderr is not None
        top.stdout.close()
        assert top.wait(LIMIT_S) == 0
        assert top.stderr.read() == ""
        top.stderr.close()


@pytest.mark.parametrize("end", ["q", "SIGTERM"])
def test_on_a_terminal_until_q_or_a_signal(end: str):
    process = Process(Role.PREFILL)
    master, slave = pty.openpty()
    with MetricsServer(registry=process.registry) as server:
        command = [*COMMAND, "top", f"127.0.0.1:{server.port}", "--interval", "0.2"]
        variables = environment(TERM="xterm", COLUMNS="150", LINES="50")
        top = subprocess.Popen(command, env=variables, stdin=slave, stdout=slave, stderr=subprocess.PIPE)
        try:
            screen = read_until(master, b"goodput")
            assert b"q ends" in screen
            assert b"\x1b[?1049h" in screen, "the alternate screen"
            if end == "q":
                os.write(master, b"xq")
            else:
                top.send_signal(signal.Signals[end])
            read_until(master, b"\x1b[?1049l")
            _, errors = top.communicate(timeout=LIMIT_S)
        finally:
            top.kill()
            top.wait()
            os.close(slave)
            os.close(master)
    assert (top.returncode, errors) == (0, b"")


def read_until(terminal: int, text: bytes) -> bytes:
    """What is written to a terminal, up to this text."""
    seen, deadline = b"", monotonic() + LIMIT_S
    while text not in seen:
        assert monotonic() < deadline, seen
        seen += os.read(terminal, 65_536)
    return seen

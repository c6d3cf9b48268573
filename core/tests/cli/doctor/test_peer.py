"""The doctor and a live prefill instance: real processes, real servers, and what is wrong with each of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from core.tests.bootstrap.support import registration
from core.tests.cli.doctor.support import BACKEND, by_id, doctor, examine, said
from core.tests.cli.support import COMMAND, environment
from kv_core import BootstrapServer
from kv_core.cli.app import app
from kv_core.cli.doctor.memory import BULK_BYTES
from kv_core.cli.doctor.settings import read_layout
from tests.support.bad_servers import black_hole, closed_port, http, talker
from tests.support.memory import Shape
from tests.support.rank import RankProcess
from tests.support.waiting import wait_until

SHAPE = Shape(pages=16, layers=2, page_bytes=256)


def layout_file(folder: Path, **changes: Any) -> Path:
    """The layout of ``SHAPE`` and of ``RankMemory.args``, as an operator would write it down."""
    buffers = [{"item_len": 256, "layer": number // 2, "part": "kv"[number % 2]} for number in range(4)]
    layout = {
        "kv": buffers, "aux": [{"item_len": 48}], "page_size": 16, "dtype": "bfloat16", "model": "test-model",
        "revision": "r1", "num_kv_heads": 2, "head_dim": 64,
    }  # fmt: skip
    path = folder / "layout.json"
    path.write_text(json.dumps(layout | changes))
    return path


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """A prefill instance of an engine with pages of 32 tokens, in a process of its own; its bootstrap address."""
    with RankProcess("prefill") as rank:
        addr = rank.call("serve_bootstrap")
        rank.start(SHAPE, args={"page_size": 32}, config={"bootstrap_addr": addr})
        yield addr


@contextmanager
def serving() -> Iterator[dict[str, Any]]:
    """``kv-core doctor --serve``: what it says when it is ready."""
    process = subprocess.Popen(
        [*COMMAND, "doctor", "--serve", "127.0.0.1:0", "--backend", BACKEND, "--json"], env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield {**json.loads(process.stdout.readline()), "process": process}
    finally:
        process.terminate()  # and not SIGINT, which is ignored where a shell runs the tests in the background
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0, errors


def test_a_healthy_machine_moves_pages_on_itself_and_from_a_doctor_that_serves():
    with serving() as there:
        ran = doctor("--backend", BACKEND, "--peer", there["serving"])
        with said(ran) as found:
            assert ran.status == 0
            good = {"live.registered", "live.moved", "peer.well", "peer.versions", "peer.moved"}
            assert good <= set(found)
            assert not [each for each in found.values() if each["status"] == "problem"]
            for finding in ("live.moved", "peer.moved"):
                assert "64 MiB" in found[finding]["message"]
                assert "every byte right" in found[finding]["message"]
            to = {each["to"]: each for each in ran.document["measurements"]}
            assert set(to) == {"loopback", there["serving"]}
            for measured in to.values():
                assert (measured["backend"], measured["transport"]) == (BACKEND, "tcp")
                assert measured["bytes"] == BULK_BYTES
                assert measured["gb_s"] > 0
        visit = json.loads(there["process"].stdout.readline())
        assert (visit["to"], visit["bytes"], visit["transport"]) == ("visitor", BULK_BYTES, "tcp")
    wait_until(lambda: not alive(there["pid"]), "the serving doctor's child has ended, too")


def alive(pid: int) -> bool:
    """Whether there is a process of this id that is no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_an_engine_whose_layout_is_known_and_fits(known, engine, tmp_path):
    report = examine("peer", known, peer=engine, layout=read_layout(layout_file(tmp_path, page_size=32)))
    found = by_id(report)
    assert report.exit_status == 0, report.to_json()
    assert "peer.met" in found
    assert "the fabric is tcp" in found["peer.met"]["message"]
    assert "peer.no-bytes" in found


def test_the_wrong_page_size_at_the_peer(known, engine, tmp_path):
    report = examine("peer", known, peer=engine, layout=read_layout(layout_file(tmp_path, dtype="int8")))
    seen = by_id(report)["peer.layout-differs"]
    for difference in ("page_size (prefill '32', decode '16')", "dtype (prefill 'bfloat16', decode 'int8')"):
        assert difference in seen["message"]
    assert report.exit_status == 1


def test_an_engine_whose_layout_nobody_told_the_doctor(known, engine):
    report = examine("peer", known, peer=engine)
    assert "model" in by_id(report)["peer.answered"]["message"]
    assert report.exit_status == 0, report.to_json()


def test_another_backend_at_the_peer(known):
    with BootstrapServer(port=0) as server, registered(server, backend="elsewhere"):
        found = by_id(examine("peer", known, peer=server.address))
    assert "'elsewhere'" in found["peer.backend"]["message"]
    assert "peer.met" not in found
    assert "peer.rank-unreachable" in found  # nobody listens at the port that it registered


def test_another_version_at_the_peer(known):
    with BootstrapServer(port=0) as server, registered(server, backend=BACKEND, protocol_version=99):
        found = by_id(examine("peer", known, peer=server.address))
    assert "version 99" in found["peer.protocol"]["message"]
    versions = {"core_version": "0.0.9", "backend_version": "0.0.8"}
    with BootstrapServer(port=0) as server, registered(server, backend=BACKEND, **versions):
        found = by_id(examine("peer", known, peer=server.address, static=True))
    assert "kv-core 0.0.9" in found["peer.other-versions"]["message"]
    assert found["peer.other-versions"]["status"] == "warning"


def test_an_instance_of_which_ranks_are_missing(known):
    with BootstrapServer(port=0) as server, registered(server, sizes=(2, 1, 1, 1)):
        found = by_id(examine("peer", known, peer=server.address))
    assert "1 of 2 prefill ranks" in found["peer.not-ready"]["message"]


@contextmanager
def registered(server: BootstrapServer, **changes: Any) -> Iterator[None]:
    """A rank of another kind registers with a real server, at a port where nobody listens."""
    import requests

    with closed_port() as port:
        body = registration(rank_port=port, **changes).encode()
        answer = requests.put(f"http://{server.address}/route", data=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        yield


def test_nobody_serves_at_the_peers_address(known):
    with closed_port() as port:
        report = examine("peer", known, peer=f"127.0.0.1:{port}")
    assert "peer.refused" in by_id(report)
    assert report.exit_status == 1


def test_a_peer_that_swallows_everything(known):
    with black_hole() as port:
        report = examine("peer", known, peer=f"127.0.0.1:{port}", timeout_s=0.5)
    assert "peer.silent" in by_id(report)


def test_something_else_serves_there(known):
    with talker(http(200, b'{"status": "this is a web page"}')) as port:
        assert "peer.not-bootstrap" in by_id(examine("peer", known, peer=f"127.0.0.1:{port}"))
    with talker(lambda _request: b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        assert "peer.not-bootstrap" in by_id(examine("peer", known, peer=f"127.0.0.1:{port}"))


def test_a_peer_whose_name_nobody_knows(known):
    assert "peer.unresolved" in by_id(examine("peer", known, peer="no-such-host.invalid:8998"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peer", "somewhere"), "must end in ':' and a port"),
        (("--serve", "0.0.0.0:0"), "--backend NAME"),
        (("--layout", "/no/such/file"), "can't be read"),
        (("--option", "nonsense"), "KEY=VALUE"),
        (("--require-transport", " "), "require_transport"),
    ],
)
def test_bad_arguments_have_exit_status_2(arguments: tuple[str, ...], words: str):
    ran = CliRunner().invoke(app, ["doctor", *arguments])
    assert ran.exit_code == 2
    assert words in " ".join(ran.output.replace("│", " ").split()), ran.output


def test_a_layout_file_with_a_mistake(tmp_path):
    (tmp_path / "layout.json").write_text('{"kv": [{"item_length": 1}]}')
    with pytest.raises(ValueError, match=r"item_length|item_len"):
        read_layout(tmp_path / "layout.json")

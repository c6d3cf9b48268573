"""``kv-core events`` as a process, on real publishers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from core.tests.events.support import LIMIT_S, batch, publishing, removed, stored, until
from kv_core.events import Message, Recorder, make_profile, read_recording


def command(*arguments, wanted=0):
    done = subprocess.run(
        [sys.executable, "-m", "kv_core.cli", "events", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == wanted, done.stdout + done.stderr
    return done


def frames(seq, *events):
    return [b"", seq.to_bytes(8, "big"), make_profile("map").encode(batch(*events))]


@pytest.fixture
def recording(tmp_path):
    def make(*messages):
        path = tmp_path / "events.rec"
        with Recorder(path) as recorder:
            for place, message in enumerate(messages):
                recorder.write(Message(message, at=100.0 + place / 1000))
        return path

    return make


@pytest.fixture(scope="module")
def filled():
    """A publisher with three good batches in its ring."""
    with publishing() as publisher:
        for event in (stored(1), stored(2, 1), removed(2)):
            publisher.publish(batch(event))
        until(lambda: publisher.stats()["published_batches"] == 3)
        yield publisher


def test_check_a_publisher_through_its_replay_endpoint(filled):
    done = command("check", filled.endpoint, "--replay-endpoint", filled.replay_endpoint, "--count", 3, "--json")
    told = json.loads(done.stdout)
    assert told["ok"]
    assert (told["batches"], told["blocks_now"], told["profiles"], told["findings"]) == (3, 1, ["map"], [])


def test_replay_from_a_number(filled):
    told = json.loads(command("replay", filled.replay_endpoint, "--from", filled.first_seq + 1, "--json").stdout)
    assert told["batches"] == 2


def test_replay_of_nothing(filled):
    assert "did not answer" in command("replay", filled.endpoint, "--timeout", 0.3, wanted=3).stderr


def test_tail(filled):
    done = command("tail", filled.endpoint, "--replay-endpoint", filled.replay_endpoint, "--count", 3)
    assert [line.split("  ", 2)[2] for line in done.stdout.splitlines()] == [
        "rank 0  BlockStored 1 after None, 2 tokens",
        "rank 0  BlockStored 2 after 1, 2 tokens",
        "rank 0  BlockRemoved 2",
    ]


def test_record_then_check_and_read_it(filled, tmp_path):
    path = tmp_path / "it.rec"
    command("record", filled.endpoint, path, "--replay-endpoint", filled.replay_endpoint, "--count", 3)
    assert len(list(read_recording(path))) == 3
    assert "batches: 3" in command("check", path).stdout


def test_check_says_what_is_wrong(recording):
    path = recording(frames(0, stored(1)), frames(4, stored(9, parent=8)))
    done = command("check", path, wanted=1)
    assert "error: gap: 3 batches are missing before 4 [seq 4]" in done.stdout
    assert "ok: False" in done.stdout


def test_play_what_was_recorded_in_another_profile(recording):
    path = recording(frames(5, stored(1)), frames(6, stored(2, 1)))
    play = subprocess.Popen(
        [sys.executable, "-m", "kv_core.cli", "events", "play", path, "tcp://127.0.0.1:0", "--profile", "legacy", "--speed", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(LIMIT_S, play.kill)
    watchdog.start()
    assert play.stdout is not None
    endpoint = play.stdout.readline().split()[-1]
    told = json.loads(command("check", endpoint, "--count", 2, "--json").stdout)
    assert (told["profiles"], told["batches"], told["findings"]) == (["array"], 2, [])
    assert play.wait() == 0
    assert play.stdout.read() == "2 messages published\n"
    play.stdout.close()
    watchdog.cancel()


def test_play_without_a_subscriber(recording):
    assert "no subscriber" in command("play", recording(), "tcp://127.0.0.1:0", "--wait", 0.1, wanted=3).stderr


@pytest.mark.parametrize("content", [b"something else", b"KVEVREC1\n\0\0\0\4oops"])
def test_a_file_that_is_no_recording(tmp_path, content):
    path = tmp_path / "bad"
    path.write_bytes(content)
    command("check", path, wanted=1)


def test_a_recording_that_was_cut_off_is_read_up_to_there(recording):
    path = recording(frames(0, stored(1)), frames(1, stored(2)))
    path.write_bytes(path.read_bytes()[:-3])
    assert len(list(read_recording(path))) == 1


@pytest.mark.parametrize(
    "arguments",
    [("check", "nowhere"), ("tail", "tcp://nowhere"), ("tail", "http://x"), ("play", __file__, "tcp://x"),
     ("play", __file__, "tcp://127.0.0.1:0", "--profile", "xml")],
)  # fmt: skip
def test_bad_arguments(arguments):
    assert "Traceback" not in command(*arguments, wanted=2).stderr


def test_nothing_came(tmp_path):
    command("check", f"ipc://{tmp_path}/nobody", "--seconds", 0.2, wanted=3)

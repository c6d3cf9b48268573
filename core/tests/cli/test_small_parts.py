"""Options, settings, lines on pipes, percentiles."""

from __future__ import annotations

import pytest

from kv_core.cli.demo.lines import MAX_LINE, Ended, FromRank, LineReader, OpenRoom, PeerDied, Stop, ToRank, encode
from kv_core.cli.demo.options import parse_options
from kv_core.cli.demo.report import percentiles
from kv_core.cli.demo.settings import DemoSettings, RankSettings, rank_settings
from kv_core.contract.enums import DigestMode, Role


def test_options_are_json_or_text_and_may_be_for_one_rank() -> None:
    texts = ["a=3", "b=tcp", 'c=[{"kind": "drop"}]', "prefill.a=true", "decode.x.y=", "a=4", "other.z=1"]
    assert parse_options(texts) == {
        "": {"a": 4, "b": "tcp", "c": [{"kind": "drop"}], "other.z": 1},
        "prefill": {"a": True},
        "decode": {"x.y": ""},
    }


@pytest.mark.parametrize("text", ["", "a", "=3", "prefill.=3"])
def test_what_is_no_option_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be KEY=VALUE"):
        parse_options([text])


def test_odd_pages_are_refused() -> None:
    with pytest.raises(ValueError, match="--page-bytes is 3, must be even"):
        DemoSettings(page_bytes=3)


def test_a_rank_has_more_pages_than_a_window_of_requests_needs() -> None:
    settings = DemoSettings(concurrency=4, pages=10)
    assert 40 < settings.num_pages < DemoSettings(concurrency=4, pages=10, kill=Role.DECODE).num_pages
    assert settings.num_rows > 4


def test_a_rank_is_told_what_concerns_it() -> None:
    settings = DemoSettings(
        digest=DigestMode.ALL, timeout=3.0, options={"": {"a": 1, "b": 2}, "prefill": {"a": 5}, "decode": {"c": 6}}
    )
    prefill = rank_settings(settings, Role.PREFILL, "some", 9, "127.0.0.1:8998", 4711)
    decode = rank_settings(settings, Role.DECODE, "some", 9, "127.0.0.1:8998", 0)
    assert prefill.options == {"a": 5, "b": 2}
    assert decode.options == {"a": 1, "b": 2, "c": 6}
    config = prefill.config()
    assert (config.bootstrap_addr, config.control_port, config.digest) == ("127.0.0.1:8998", 4711, DigestMode.ALL)
    assert {config.bootstrap_timeout_s, config.waiting_timeout_s, config.transferring_timeout_s} == {3.0}
    assert decode.config().bootstrap_addr is None
    assert LineReader(RankSettings).feed(encode(prefill)) == [prefill]


def test_messages_come_out_of_lines_however_they_are_cut() -> None:
    sent = [OpenRoom("127.0.0.1", 8998, 2**63 - 1), PeerDied(), Stop()]
    stream = b"".join(encode(message) for message in sent)
    for size in range(1, len(stream)):
        reader: LineReader = LineReader(ToRank)  # type: ignore[arg-type]
        heard = [got for begin in range(0, len(stream), size) for got in reader.feed(stream[begin : begin + size])]
        assert heard == sent


@pytest.mark.parametrize("line", [b"Hello\n", b'{"type": "Unknown"}\n', b'{"type": "Ended"}\n', b"\xff\n"])
def test_what_is_no_message_is_refused_and_shown(line: bytes) -> None:
    reader: LineReader = LineReader(FromRank)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a line is no message"):
        reader.feed(line)


def test_an_endless_line_is_refused() -> None:
    reader: LineReader = LineReader(FromRank)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is no message"):
        reader.feed(b"x" * (MAX_LINE + 1))


def test_only_the_right_bytes_are_a_success() -> None:
    assert Ended(1).ok
    assert not Ended(1, wrong_bytes=1).ok
    assert not Ended(1, reason="transfer/timeout").ok


def test_percentiles() -> None:
    found = percentiles([number / 1000 for number in range(1, 102)])
    assert found == pytest.approx({"p50": 51.0, "p90": 91.0, "p99": 100.0, "max": 101.0})
    assert set(percentiles([]).values()) == {None}

"""What the commands of ``kv-core events`` do."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
import zmq

from kv_core.contract.failures import KVCoreError
from kv_core.events.checker import StreamChecker
from kv_core.events.consumer import Message, Subscription
from kv_core.events.consumer import replay as ask
from kv_core.events.decode import decode_batch
from kv_core.events.errors import ReplayError, SchemaError
from kv_core.events.follow import follow
from kv_core.events.numbers import from_frame
from kv_core.events.profiles import make_profile
from kv_core.events.recording import Recorder, read_recording
from kv_core.events.schema import AllBlocksCleared, BlockStored, Event
from kv_core.events.sockets import bound_xpub

BAD_ARGUMENTS, NOTHING_CAME = 2, 3


@dataclass(frozen=True)
class Source:
    """Where messages come from and when it ends. ``where``: an endpoint, or a recording's path."""

    where: str
    replay_endpoint: str | None
    topic: str
    bind: bool
    count: int | None
    seconds: float | None

    def messages(self) -> Iterator[Message]:
        """The messages until the end; Ctrl-C is an end, too. Raises ``typer.BadParameter`` for an endpoint that is none."""
        if "://" not in self.where:
            path = Path(self.where)
            if not path.is_file():
                raise typer.BadParameter(f"{self.where!r} is neither an endpoint (tcp://HOST:PORT) nor a file")
            yield from self._limited(read_recording(path))
            return
        try:
            subscription = Subscription(self.where, topic=self.topic, bind=self.bind)
        except zmq.ZMQError as error:
            raise typer.BadParameter(f"{self.where!r}: {error}; expected tcp://HOST:PORT or ipc://PATH") from None
        end = None if self.seconds is None else time.monotonic() + self.seconds
        with subscription:
            stream = follow(
                subscription,
                self.replay_endpoint,
                trouble=_say,
                ended=lambda: end is not None and time.monotonic() >= end,
            )
            yield from self._limited(stream)

    def _limited(self, messages: Iterator[Message]) -> Iterator[Message]:
        try:
            for number, message in enumerate(messages, 1):
                yield message
                if number == self.count:
                    return
        except KeyboardInterrupt:
            return


def tail(source: Source, *, as_json: bool) -> int:
    """One line for each batch."""
    for message in source.messages():
        sys.stdout.write((json.dumps(_document(message)) if as_json else _line(message)) + "\n")
        sys.stdout.flush()
    return 0


def check(source: Source, *, as_json: bool) -> int:
    """Findings as they come, then what there was. A damaged recording is a finding of its own: exit status 1."""
    return _checked(source.messages(), as_json=as_json)


def replay(endpoint: str, start: int, *, timeout_s: float, as_json: bool) -> int:
    """Check what a replay endpoint gives."""
    return _checked(ask(endpoint, start, timeout_s=timeout_s), as_json=as_json)


def record(source: Source, file: Path) -> int:
    """Write a stream down."""
    written = 0
    with Recorder(file) as recorder:
        for message in source.messages():
            recorder.write(message)
            written += 1
    print(f"{written} messages written to {file}")
    return 0


def play(file: Path, endpoint: str, *, profile: str | None, speed: float, wait_s: float) -> int:
    """Publish a recording."""
    try:
        codec = make_profile(profile) if profile else None
        socket, bound = bound_xpub(zmq.Context.instance(), endpoint)
    except KVCoreError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        print(f"publishing at {bound}", flush=True)
        if not socket.poll(int(wait_s * 1000)):
            _say(f"no subscriber came within {wait_s:g} s")
            return NOTHING_CAME
        pause, began, played = threading.Event(), time.monotonic(), 0
        for message in read_recording(file):
            if speed > 0:
                pause.wait(max(0.0, began + message.at / speed - time.monotonic()))
            frames = message.frames
            if codec is not None and len(frames) == 3:
                frames = [*frames[:2], codec.encode(decode_batch(frames[2]).batch)]
            socket.send_multipart(frames)
            played += 1
        print(f"{played} messages published")
    except KVCoreError as error:
        _say(error)
        return 1
    finally:
        socket.close(linger=5000)
    return 0


def _checked(messages: Iterator[Message], *, as_json: bool) -> int:
    checker = StreamChecker()
    status = 0
    try:
        for message in messages:
            for finding in checker.feed(message.frames, replayed=message.replayed):
                if not as_json:
                    print(finding, flush=True)
    except ReplayError as error:
        _say(error)
        status = NOTHING_CAME
    except KVCoreError as error:
        _say(error)
        status = 1
    _summary(checker, as_json=as_json)
    if checker.failed():
        return 1
    return status or (0 if checker.messages else NOTHING_CAME)


def _summary(checker: StreamChecker, *, as_json: bool) -> None:
    document: dict[str, Any] = {
        "messages": checker.messages, "batches": checker.batches, "missing_batches": checker.missing,
        "events": dict(checker.events), "blocks_now": checker.blocks, "profiles": sorted(checker.profiles),
        "lives": checker.lives, "ok": not checker.failed(),
        "counts": {f"{severity}.{code}": number for (severity, code), number in sorted(checker.counts.items())},
    }  # fmt: skip
    if as_json:
        document["findings"] = [asdict(finding) for finding in checker.findings]
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    for name, value in document.items():
        print(f"{name}: {value}")


def _line(message: Message) -> str:
    document = _document(message)
    if "error" in document:
        return f"{document.get('seq', '?')}  cannot be read: {document['error']}"
    mark = "replayed  " if message.replayed else ""
    return f"{document['seq']}  {mark}rank {document['rank']}  {'; '.join(document['events']) or 'no events'}"


def _document(message: Message) -> dict[str, Any]:
    frames = message.frames
    if len(frames) != 3 or len(frames[1]) != 8:
        return {"error": f"{len(frames)} frames; expected topic, seq (8 bytes), payload"}
    document: dict[str, Any] = {
        "seq": from_frame(frames[1]), "topic": frames[0].decode(errors="replace"), "replayed": message.replayed,
    }  # fmt: skip
    try:
        batch = decode_batch(frames[2]).batch
    except SchemaError as error:
        return document | {"error": str(error)}
    return document | {"ts": batch.ts, "rank": batch.attn_dp_rank, "events": [_told(event) for event in batch.events]}


def _told(event: Event) -> str:
    if isinstance(event, AllBlocksCleared):
        return "AllBlocksCleared" + (f" ({event.reason}, {event.lost_batches} batches lost)" if event.reason else "")
    medium = f" in {event.medium}" if event.medium else ""
    hashes = ", ".join(str(block) for block in list(event.block_hashes)[:2])
    more = f", ... {len(event.block_hashes)} in all" if len(event.block_hashes) > 2 else ""
    if isinstance(event, BlockStored):
        return f"BlockStored{medium} {hashes}{more} after {event.parent_block_hash}, {len(event.token_ids)} tokens"
    return f"BlockRemoved{medium} {hashes}{more}"


def _say(what: object) -> None:
    sys.stderr.write(f"kv-core events: {what}\n")

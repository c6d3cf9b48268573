"""Checks a publisher's stream, message by message: frames, schema, numbers, chains of blocks. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from kv_core.events.chains import Chains
from kv_core.events.decode import Decoded, decode_batch
from kv_core.events.errors import SchemaError
from kv_core.events.numbers import END_SEQ, begins_a_life, from_frame
from kv_core.events.schema import AllBlocksCleared
from kv_core.events.sequence import Sequence, Step

MAX_FINDINGS = 1_000


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing. severity: "error", "warning" or "note"; code: fixed, for scripts."""

    severity: str
    code: str
    text: str
    seq: int | None = None

    def __str__(self) -> str:
        where = "" if self.seq is None else f" [seq {self.seq}]"
        return f"{self.severity}: {self.code}: {self.text}{where}"


class StreamChecker:
    """Feed it every message in order of arrival, with what a replay gave at its place.

    ``findings`` holds the first thousand; ``counts`` counts all, by (severity, code). ``profiles`` says which wire
    profiles the events have been in.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.batches = 0
        self.events: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.findings: list[Finding] = []
        self.profiles: set[str] = set()
        self.lives = 0
        self.missing = 0
        self.decoded: Decoded | None = None
        self.sequence = Sequence()
        self._topics: set[bytes] = set()
        self._chains: dict[int | None, Chains] = {}
        self._replayed_to = -1
        self._blind = False

    @property
    def blocks(self) -> int:
        """Blocks that are there now, of all ranks."""
        return sum(len(chains) for chains in self._chains.values())

    def failed(self) -> bool:
        """Whether anything is an error."""
        return any(severity == "error" for severity, _ in self.counts)

    def wants(self, frames: list[bytes]) -> int | None:
        """From which number on a replay should be asked for before this message is fed; None if nothing is missing."""
        if len(frames) != 3 or len(frames[1]) != 8 or frames[1] == END_SEQ:
            return None
        seq = from_frame(frames[1])
        step = self.sequence.look(seq)
        if step.kind == "first":
            return 0 if seq > 0 else None
        return step.expected if step.kind in {"gap", "restart"} else None

    def feed(self, frames: list[bytes], *, replayed: bool = False) -> list[Finding]:
        """Take a message ``[topic, seq, payload]`` in. Returns what is new."""
        before = len(self.findings)
        self.messages += 1
        self.decoded = None
        if len(frames) != 3:
            self._add("error", "frame_count", f"{len(frames)} frames; every consumer expects topic, seq, payload")
        elif len(frames[1]) != 8:
            self._add("error", "seq_length", f"the number has {len(frames[1])} bytes; expected 8, big-endian")
        elif frames[1] == END_SEQ:
            self._add("warning", "end_marker", "a replay's end marker on the stream of events")
        else:
            self._message(frames, from_frame(frames[1]), replayed=replayed)
        return self.findings[before:]

    def _message(self, frames: list[bytes], seq: int, *, replayed: bool) -> None:
        if not replayed and seq <= self._replayed_to:
            return  # a replay brought it already
        if frames[0] not in self._topics:
            if self._topics:
                self._add("note", "topic", f"another topic: {frames[0]!r}", seq)
            self._topics.add(frames[0])
        try:
            self.decoded = decode_batch(frames[2])
        except SchemaError as error:
            self._step(self.sequence.take(seq), seq, told="")
            self._add("error", "schema", str(error), seq)
            return
        told = next((e.reason for e in self.decoded.batch.events if isinstance(e, AllBlocksCleared) and e.reason), "")
        step = self.sequence.take(seq)
        self._step(step, seq, told=told or "")
        if replayed:
            self._replayed_to = max(self._replayed_to, seq)
        if step.kind != "stale":
            self._batch(self.decoded, seq)

    def _step(self, step: Step, seq: int, *, told: str) -> None:
        if step.kind == "stale":
            self._add("error", "stale", f"number {seq} came again, or out of order: expected {step.expected}", seq)
            return
        if step.kind == "first":
            self.lives = 1
            self._see_nothing_of(seq)
            return
        if step.kind == "restart" or (told == "restart" and step.kind in {"gap", "next"}):
            # The number of a clearing that says so is the one before the life's first: with a life that began in the very next
            # millisecond it still looks like one of the life before.
            self.lives += 1
            self._replayed_to = -1
            self._add("note", "restart", f"the publisher has started again: {seq} instead of {step.expected}", seq)
            self._chains.clear()
            self._see_nothing_of(seq)
        elif step.kind == "gap":
            self.missing += step.missing
            severity = "warning" if told else "error"
            said = f", and says so ({told})" if told else ""
            self._add(severity, "gap", f"{step.missing} batches are missing before {seq}{said}", seq)
            self._see_nothing_of(seq)

    def _see_nothing_of(self, seq: int) -> None:
        """Blocks may be there that this stream does not tell of, unless the number is known to be a life's first."""
        self._blind = not begins_a_life(seq)
        for chains in self._chains.values():
            chains.blind = chains.blind or self._blind

    def _batch(self, decoded: Decoded, seq: int) -> None:
        self.batches += 1
        new = decoded.shapes - self.profiles
        if new and self.profiles and ("array" in decoded.shapes) != ("array" in self.profiles):
            self._add("warning", "mixed_profiles", f"{sorted(decoded.shapes)} after {sorted(self.profiles)}", seq)
        self.profiles |= decoded.shapes
        for code, text in decoded.remarks:
            self._add("error" if code in {"batch_length", "bytes_hash"} else "warning", code, text, seq)
        chains = self._chains.setdefault(decoded.batch.attn_dp_rank, Chains(blind=self._blind))
        for event in decoded.batch.events:
            self.events[type(event).__name__] += 1
            if isinstance(event, AllBlocksCleared) and event.reason:
                self._add("warning", "loss_said", f"{event.reason}: {_how_much(event)}", seq)
            for severity, code, text in chains.apply(event):
                self._add(severity, code, text, seq)

    def _add(self, severity: str, code: str, text: str, seq: int | None = None) -> None:
        self.counts[severity, code] += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(severity, code, text, seq))


def _how_much(event: AllBlocksCleared) -> str:
    if event.lost_batches is None:
        return "consumers are told to forget what they know"
    events = "" if event.lost_events is None else f" ({event.lost_events} events)"
    return f"{event.lost_batches} batches{events} are lost; consumers are told to forget what they know"

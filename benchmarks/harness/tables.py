"""What is printed: Markdown tables, readable as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.harness.figures import Spread

NAMES = {
    "socket": "socket",
    "raw": "engine",
    "spin": "engine, its waiting call",
    "core": "kv-core",
    "transport": "transport",
    "sync": "sync",
}
"""What the ways are called in print: ``raw`` is the engine by itself."""
CALLS = {
    "prefill": ("create", "init", "send", "poll", "clear"),
    "decode": ("create", "init", "send_metadata", "poll", "clear"),
}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Lines of one table."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    for number, line in enumerate([list(head), *cells]):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        if number == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"


def report(result: dict[str, Any]) -> Iterator[str]:
    """Everything that was measured, in lines."""
    machine = result["machine"]
    yield (
        f"Backend {result['backend']}, Python {result['python']}, {machine['cpus']} CPUs ({machine['cpu']}), Linux "
        f"{machine['kernel']}, load at the start {machine['load_1m']}."
    )
    settings = [f"{name}={value}" for name, value in result["environment"].items()]
    settings += [f"{name}={value}" for name, value in result["options"].items()]
    settings += [f"{name}={value} (engine's own way)" for name, value in result["raw"].items()]
    if result["engine"] or settings:
        yield f"{result['engine'] or 'No engine'}; {', '.join(settings) or 'no settings'}."
    parts: dict[str, Callable[[Any], Iterator[str]]] = {
        "goodput": goodput, "sync": sync, "frozen": frozen, "calls": calls, "control": control, "latency": latency, "streaming": streaming, "staging": staging,
        "observation": observation, "planning": planning, "pull": pull,
    }  # fmt: skip
    for name, lines in parts.items():
        if name in result:
            yield ""
            yield from lines(result[name])


def goodput(result: dict[str, Any]) -> Iterator[str]:
    """Goodput, ratio, processor seconds."""
    title = f"### Goodput: {result['buffers']} buffers, pages of {result['item_bytes'] // 1024} KiB"
    yield f"{title}, up to {result['rounds']} rounds, over {result['fabric']}"
    yield ""
    ways, base = result["ways"], NAMES[result["yardstick"]]
    compared = ways[1:]
    head = (
        "pages", "pattern", "in flight", "rounds", *(f"{NAMES[way]} GB/s" for way in ways),
        *(f"{NAMES[way]} / {base}" for way in compared), f"{base} ms per room", "kv-core ms per room",
        f"kv-core - {base}, us per room", *(f"CPU s/GB {NAMES[way]}" for way in ways), "CPUs of others",
    )  # fmt: skip
    rows = []
    for cell in result["cells"]:
        cpu = {way: "{prefill:.2f} + {decode:.2f}".format(**sides) for way, sides in cell["cpu_s_per_gb"].items()}
        rows.append(
            (
                cell["pages"], cell["pattern"], cell["concurrency"], cell["rounds"],
                *(_text(cell["rate"], way) for way in ways), *(_text(cell["ratio"], way) for way in compared),
                cell["room_ms"][ways[0]].text(1), cell["room_ms"]["core"].text(1), cell["over_us"].text(0),
                *(cpu.get(way, "-") for way in ways), cell["others_busy"].text(1),
            )
        )  # fmt: skip
    yield from table(head, rows)


def _text(figures: dict[str, Spread], way: str) -> str:
    return figures[way].text() if way in figures else "-"


def sync(result: list[dict[str, Any]]) -> Iterator[str]:
    """Time for which the engine's thread is held."""
    yield "### Engine thread held for a room: kv-core, and a thread that posts and waits (sync)"
    yield ""
    head = (
        "pages", "in flight", "kv-core us per room", "kv-core us per room, decode", "sync us per room", "sync / kv-core",
        "kv-core GB/s", "sync GB/s", "kv-core / sync GB/s", "CPUs of others",
    )  # fmt: skip
    rows = [
        (
            row["pages"], row["in_flight"], row["held_us"]["core"].text(0), row["held_decode_us"].text(0),
            row["held_us"]["sync"].text(0), row["less_held"].text(0), row["rate"]["core"].text(),
            row["rate"]["sync"].text(), row["ratio"].text(), row["others_busy"].text(1),
        )
        for row in result
    ]  # fmt: skip
    yield from table(head, rows)


def frozen(result: list[dict[str, Any]]) -> Iterator[str]:
    """One peer's rooms without and with frozen other peers."""
    yield "### One decode process's rooms while others are stopped in the middle of theirs"
    yield ""
    head = (
        "frozen", "their rooms in flight", "p50 / p99 ms, none frozen", "p50 / p99 ms, frozen", "p50 frozen / none",
        "GB/s, none frozen", "GB/s, frozen", "GB/s frozen / none", "rooms of the frozen that ended well", "CPUs of others",
    )  # fmt: skip
    rows = [
        (
            row["frozen"], row["in_flight"],
            *("{p50:.2f} / {p99:.2f}".format(**row["latency_ms"][case]) for case in ("without", "with")),
            row["latency_ratio"].text(), *(row["rate"][case].text() for case in ("without", "with")),
            row["ratio"].text(), f"{row['ended_well']} of {row['rooms_of_frozen']}", row["others_busy"].text(1),
        )
        for row in result
    ]  # fmt: skip
    yield from table(head, rows)


def calls(result: list[dict[str, Any]]) -> Iterator[str]:
    """Microseconds by call."""
    yield "### Engine thread, microseconds per call: p50 / p99"
    yield ""
    rows = []
    for row in result:
        for role, side in row["sides"].items():
            taken, flying = side["calls"], side["in_flight"]
            texts = [f"{taken[name]['p50']:.1f} / {taken[name]['p99']:.1f}" for name in CALLS[role]]
            size = f"{row['room_bytes'] // 1024} KiB"
            rows.append((role, size, row["concurrency"], flying.get("live_rooms", "-"), *texts, row["others_busy"]))
    head = (
        "side", "room", "in flight", "seen in flight", "create", "init", "send or send_metadata", "poll", "clear",
        "CPUs of others",
    )  # fmt: skip
    yield from table(head, rows)


def control(result: list[dict[str, Any]]) -> Iterator[str]:
    """Cost of a room without bytes."""
    yield "### Control plane: whole rooms, pages of 64 bytes"
    yield ""
    rows = [
        (
            row["pages"], row["concurrency"], row["rooms_per_s"].text(0), row["us_per_room"].text(0),
            row["cpu_us_per_room"]["prefill"].text(0), row["cpu_us_per_room"]["decode"].text(0),
            row["packets_per_room"].text(1), row["others_busy"].text(1),
        )
        for row in result
    ]  # fmt: skip
    head = (
        "pages",
        "in flight",
        "rooms/s",
        "us per room",
        "CPU us prefill",
        "CPU us decode",
        "packets per room",
        "CPUs of others",
    )
    yield from table(head, rows)


def latency(result: dict[str, Any]) -> Iterator[str]:
    """Milliseconds of an 8 MiB room."""
    yield f"### Latency of a room of {result['bytes'] / 2**20:.0f} MiB, send() to Success, milliseconds"
    yield ""
    rows = [
        (
            "busy" if case["busy"] else "idle", f"{(case['switch_interval_s'] or 0.005) * 1e3:g} ms",
            case["p50"], case["p90"], case["p99"], case["others_busy"],
        )
        for case in result["cases"]
    ]  # fmt: skip
    yield from table(("engine threads", "switch interval", "p50", "p90", "p99", "CPUs of others"), rows)
    yield ""
    yield f"The same bytes through the {NAMES[result['yardstick']]} alone: {result['yardstick_ms']} ms (mean)."


def streaming(result: dict[str, Any]) -> Iterator[str]:
    """From the end of the computation to Success."""
    mib = result["bytes"] / 2**20
    yield f"### Layer-wise streaming: a room of {mib:.0f} MiB in {result['layers']} layers, from the end of the computation to Success"
    yield ""
    yield f"The whole transfer, with nothing to compute before it, takes {result['whole_ms'].text(1)} ms; layer by layer {result['layered_ms'].text(1)} ms."
    yield ""
    rows = [
        (
            f"{case['compute']:g}", case["sent"], case["tail_ms"].text(1), case["part"].text(3),
            case["others_busy"].text(1),
        )
        for case in result["cases"]
    ]  # fmt: skip
    head = (
        "a layer's computation / its transfer", "sent", "end of computation to Success, ms", "/ whole transfer",
        "CPUs of others",
    )  # fmt: skip
    yield from table(head, rows)


def staging(result: dict[str, Any]) -> Iterator[str]:
    """Small pieces, or a detour through a staging pool."""
    yield "### Staging: 16 MiB in small pieces, through the transport alone, milliseconds"
    yield ""
    rows = [
        (
            row["piece"], f"{row['pieces']:,}", row["direct_ms"].text(1), row["gather_ms"].text(1), row["wire_ms"].text(1),
            row["scatter_ms"].text(1), row["detour_ms"].text(1), row["ratio"].text(), row["ratio_overlapped"].text(),
        )
        for row in result["transport"]
    ]  # fmt: skip
    head = (
        "bytes of a piece", "pieces", "as they are", "gather", "1 MiB copies", "scatter", "detour", "as they are / detour",
        "as they are / its longest part",
    )  # fmt: skip
    yield from table(head, rows)
    yield ""
    yield "### Staging: rooms of 16 MiB through kv-core, NHD to HND, milliseconds"
    yield ""
    through = [
        (
            row["piece"], row["run"], row["as_is_ms"].text(1), row["staged_ms"].text(1) if row["staged"] else "not staged",
            row["ratio"].text(),
        )
        for row in result["core"]
    ]  # fmt: skip
    yield from table(("bytes of a piece", "of a run there", "as they are", "staged", "as they are / staged"), through)


def pull(result: list[dict[str, Any]]) -> Iterator[str]:
    """The same rooms in both directions."""
    yield "### Push and pull: milliseconds of a room"
    yield ""
    rows = [
        (row["pages"], row["in_flight"], row["push_ms"].text(), row["pull_ms"].text(), row["ratio"].text())
        for row in result
    ]
    yield from table(("pages", "in flight", "push", "pull", "push / pull"), rows)


OBSERVED = {
    "off": "everything off", "history": "flight recorder (the default)", "prometheus": "Prometheus",
    "recording": "flight recorder, and its recording", "spans": "flight recorder, and OpenTelemetry spans",
}  # fmt: skip


def observation(result: list[dict[str, Any]]) -> Iterator[str]:
    """What observing costs."""
    yield f"### Observation: rooms of one page of 64 bytes, {result[0]['in_flight']} in flight, {result[0]['rooms']} each round"
    yield ""
    rows = [
        (
            OBSERVED[row["mode"]],
            *(
                text for role in ("prefill", "decode")
                for text in (row["held_us"][role].text(0), row["engine_us"][role].text(1), row["ratio"][role].text())
            ),
            row["cpu_us"]["prefill"].text(0), row["cpu_us"]["decode"].text(0), row["others_busy"].text(1),
        )
        for row in result
    ]  # fmt: skip
    head = (
        "on", "engine thread held, us per room, prefill", "its CPU us", "/ off",
        "engine thread held, us per room, decode", "its CPU us", "/ off",
        "CPU us per room, all threads, prefill", "decode", "CPUs of others",
    )  # fmt: skip
    yield from table(head, rows)


def plain(value: Any) -> Any:
    """The same with spreads as dicts: fit for JSON."""
    if isinstance(value, Spread):
        return {name: round(number, 4) for name, number in asdict(value).items()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def planning(result: dict[str, Any]) -> Iterator[str]:
    """Pairs of topologies: what a peer and a chunk cost, and what of it goes to the engine."""
    yield f"### Planning: {result['layers']} layers, chunks of {result['pages']} pages of 16 tokens, one pair of ranks"
    yield ""
    head = (
        "pair", "bytes a page", "descriptors a page", "plan, once per peer, us", "batch, us", "copies, at random", "made in us",
        "copies, side by side", "made in us", "bytes at 25 GB/s, us",
    )  # fmt: skip
    names = (
        "pair", "bytes_page", "desc_page", "plan_us", "batch_us", "copies_random", "copies_us", "copies_contig", "contig_us",
        "wire_us",
    )  # fmt: skip
    yield from table(head, [[row[name] for name in names] for row in result["pairs"]])
    large = result["large"]
    yield ""
    yield (
        f"A room of {large['pages']:,} pages in {large['buffers']} buffers, 16 to 64 tokens in HND: its batch takes "
        f"{large['batch_us'] / 1000:.1f} ms and leaves {large['objects']} objects; it is cut into {large['batches']:,} batches "
        f"in {large['split_s'] * 1000:.0f} ms."
    )

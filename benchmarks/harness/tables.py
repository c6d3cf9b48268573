"""What is printed: Markdown tables, readable as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.harness.figures import Spread

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
    for name, lines in (("goodput", goodput), ("calls", calls), ("control", control), ("latency", latency)):
        if name in result:
            yield ""
            yield from lines(result[name])


def goodput(result: dict[str, Any]) -> Iterator[str]:
    """Goodput, ratio, processor seconds."""
    yield f"### Goodput: {result['buffers']} buffers, pages of {result['item_bytes'] // 1024} KiB, {result['rounds']} rounds"
    yield ""
    head = (
        "pages", "pattern", "in flight", "socket GB/s", "kv-core GB/s", "transport GB/s", "kv-core / socket",
        "transport / socket", "kv-core ms per room", "kv-core - socket, us per room", "CPU s/GB socket", "CPU s/GB kv-core",
        "CPU s/GB transport", "CPUs of others",
    )  # fmt: skip
    rows = []
    for cell in result["cells"]:
        cpu = {way: "{prefill:.2f} + {decode:.2f}".format(**sides) for way, sides in cell["cpu_s_per_gb"].items()}
        rows.append(
            (
                cell["pages"], cell["pattern"], cell["concurrency"], *(cell["rate"][way].text() for way in cell["rate"]),
                cell["ratio"]["core"].text(), cell["ratio"]["transport"].text(), cell["room_ms"]["core"].text(1),
                cell["over_socket_us"].text(0),                 cpu["socket"], cpu["core"], cpu["transport"], cell["others_busy"].text(1),
            )
        )  # fmt: skip
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
            rows.append((role, row["concurrency"], flying.get("live_rooms", "-"), *texts, row["others_busy"]))
    head = (
        "side",
        "in flight",
        "seen in flight",
        "create",
        "init",
        "send or send_metadata",
        "poll",
        "clear",
        "CPUs of others",
    )
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
    yield f"The same bytes through the plain socket, until the receiver's answer: {result['socket_ms']} ms (mean)."


def plain(value: Any) -> Any:
    """The same with spreads as dicts: fit for JSON."""
    if isinstance(value, Spread):
        return {name: round(number, 4) for name, number in asdict(value).items()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value

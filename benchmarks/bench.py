"""Measure kv-core over a backend: goodput, the engine thread's time, the control plane, latency, frozen peers; planning.

    python -m benchmarks.bench [--quick] [--json] [--only goodput,sync,frozen,calls,control,latency,streaming,observation,planning,staging,pull]
                               [--rounds 5]
                               [--backend fake|nixl|mooncake] [--fabric cma|tcp] [--env NAME=VALUE] [--option NAME=VALUE]

Starts a prefill and a decode process on this machine; everything printed comes from this one run. How to read it stands
in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

from benchmarks import unequal_cost
from benchmarks.harness import frozen, goodput, latency, observation, pulling, rooms, staging, streaming, sync, tables
from benchmarks.harness.figures import machine
from benchmarks.harness.ranks import Pair

SECTIONS = (
    "goodput",
    "sync",
    "frozen",
    "calls",
    "control",
    "latency",
    "streaming",
    "observation",
    "planning",
    "staging",
    "pull",
)
ONE_WAY = ("mori",)
"""Backends that do not read: there is nothing to compare."""
FABRICS: dict[str, dict[str, dict[str, str]]] = {
    "nixl": {"cma": {}, "tcp": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}},
    "mooncake": {"tcp": {"MC_FORCE_TCP": "1"}},
}
"""By backend and fabric: the environment of both processes. Over host memory on one machine UCX takes CMA by itself."""
ONE_SIDED = ("cma",)
"""Fabrics over which the other process does nothing for a transfer, so that stopping it shows nothing."""
QUIET = {"mooncake": {"MC_LOG_LEVEL": "ERROR"}}
ENGINES = {
    "nixl": ("nixl",),
    "mooncake": ("mooncake-transfer-engine", "mooncake-transfer-engine-cuda13", "mooncake-transfer-engine-non-cuda"),
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the sections, each in processes of its own."""
    result: dict[str, Any] = {
        "backend": options.backend, "python": platform.python_version(), "machine": machine(),
        "engine": engine(options.backend), "environment": options.env, "options": options.option,
        "raw": options.raw,
    }  # fmt: skip
    for section in options.only:
        result[section] = run(section, options)
    return result


def run(section: str, options: argparse.Namespace) -> Any:
    """One section."""
    rounds = options.rounds or (3 if options.quick else 5)
    quick, backend = options.quick, options.backend
    environment = {**QUIET.get(backend, {}), **options.env}
    settings = {"options": options.option} if options.option else {}
    if section == "frozen":
        return frozen.run(backend, environment, quick=quick, rounds=rounds, options=settings, tell=tell)
    if section == "planning":
        tell("planning between unequal topologies")
        return unequal_cost.run()
    with Pair(backend, environment) as pair:
        if section == "goodput":
            result: Any = goodput.run(
                pair, backend, quick=quick, rounds=rounds, options=settings, raw=options.raw, tell=tell
            )
        elif section == "sync":
            result = sync.run(pair, quick=quick, rounds=rounds, options=settings, tell=tell)
        elif section == "calls":
            result = rooms.calls(pair, backend, quick=quick, options=settings, tell=tell)
        elif section == "control":
            result = rooms.control(pair, quick=quick, rounds=rounds, options=settings, tell=tell)
        elif section == "staging":
            result = {
                "transport": staging.run(pair, quick=quick, rounds=rounds, options=settings, tell=tell),
                "core": staging.through_core(pair, quick=quick, rounds=rounds, options=settings, tell=tell),
            }
        elif section == "pull":
            result = pulling.run(pair, rounds=rounds, options=settings, tell=tell)
        elif section == "streaming":
            result = streaming.run(pair, quick=quick, rounds=rounds, options=settings, tell=tell)
        elif section == "observation":
            result = observation.run(pair, quick=quick, rounds=rounds, options=settings, tell=tell)
        else:
            result = latency.run(pair, backend, quick=quick, options=settings, tell=tell)
        pair.command("quit")
    return result


def engine(backend: str) -> str | None:
    """The engine's distribution and version."""
    for name in ENGINES.get(backend, ()):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def tell(text: str) -> None:
    """What is being done: on standard error, so that the output can be redirected."""
    print(text, file=sys.stderr, flush=True)


def sections(text: str) -> list[str]:
    """Names of sections, comma-separated."""
    names = text.split(",")
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: sections are {', '.join(SECTIONS)}")
    return names


def setting(text: str) -> tuple[str, str]:
    """``NAME=VALUE``."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parsed(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``, the value as JSON where it is any."""
    name, value = setting(text)
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Benchmark of kv-core over a backend; see docs/benchmarks.md.")
    parser.add_argument("--quick", action="store_true", help="fewer cells, rooms and rounds, 2 GiB")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    parser.add_argument("--only", type=sections, help="sections, comma-separated (default: all)")
    parser.add_argument("--rounds", type=int, default=0, help="repetitions of each measurement (default 5; quick: 3)")
    parser.add_argument("--backend", default="fake")
    parser.add_argument("--fabric", help="what the engine shall use: nixl has cma and tcp, mooncake tcp")
    parser.add_argument("--env", type=setting, action="append", default=[], help="NAME=VALUE for every process")
    parser.add_argument("--option", type=parsed, action="append", default=[], help="NAME=VALUE for the backend")
    parser.add_argument("--raw", type=parsed, action="append", default=[], help="NAME=VALUE for the engine's own way")
    options = parser.parse_args()
    options.option, options.raw = dict(options.option), dict(options.raw)
    options.env = dict(options.env)
    if options.fabric is not None:
        fabrics = FABRICS.get(options.backend, {})
        if options.fabric not in fabrics:
            parser.error(f"--fabric {options.fabric}: {options.backend} has {', '.join(fabrics) or 'no choice'}")
        if options.fabric == "cma" and "UCX_TLS" in {*os.environ, *options.env}:
            parser.error("--fabric cma: UCX_TLS is set, so that UCX would not choose by itself")
        options.env = {**fabrics[options.fabric], **options.env}
    if options.only is None:
        options.only = [name for name in SECTIONS if name != "pull" or options.backend not in ONE_WAY]
        if options.fabric in ONE_SIDED:
            options.only.remove("frozen")
            tell(f"frozen: left out, over {options.fabric} the memory of a stopped process is still written")
    result = measure(options)
    if options.json:
        print(json.dumps(tables.plain(result)))
    else:
        print("\n".join(tables.report(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

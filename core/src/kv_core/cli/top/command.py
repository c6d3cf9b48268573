"""Asks the endpoints every so often and shows what they say, until Ctrl-C, SIGTERM or ``q``: one thread, one loop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from time import monotonic

import aiohttp
from rich.console import Console
from rich.live import Live

from kv_core.cli.top.endpoints import Endpoint, look_at_all
from kv_core.cli.top.readings import load_parser
from kv_core.cli.top.screen import draw
from kv_core.cli.top.view import View
from kv_core.contract.failures import InvalidConfig

EXIT_OK, EXIT_DOWN, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 128 + signal.SIGINT
HINT = "q ends"
QUIT_KEYS = frozenset(b"qQ")


@dataclass(frozen=True)
class TopSettings:
    """What is asked, and how it is shown. Durations in seconds.

    ``window_s``: what rates and percentiles are over; at least the time between two scrapes. ``once``: one frame, of two
    scrapes. ``timeout_s``: how long an endpoint may take to answer.
    """

    addresses: tuple[str, ...]
    interval_s: float = 1.0
    window_s: float = 10.0
    timeout_s: float = 3.0
    once: bool = False
    as_json: bool = False


def run(settings: TopSettings) -> int:
    """The whole command; its exit status: 0, with ``once`` 1 if an endpoint did not answer, 2 for bad arguments."""
    try:
        load_parser()
        endpoints = [Endpoint(text, settings.window_s) for text in settings.addresses]
    except (InvalidConfig, ModuleNotFoundError) as error:
        sys.stderr.write(f"kv-core top: {error}\n")
        return EXIT_USAGE
    try:
        return asyncio.run(_run(settings, endpoints))
    except BrokenPipeError:
        # Whoever read the output has gone: an end like any other. What is still in the buffer must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


async def _run(settings: TopSettings, endpoints: list[Endpoint]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with ExitStack() as stack:
        # Each frame on connections of its own: a restarted process is seen by the next one.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            if settings.once:
                return await _once(settings, endpoints, session, stop)
            show = stack.enter_context(_shown(settings))
            stack.enter_context(_quit_key(stop))
            while True:
                began = monotonic()
                show(await look_at_all(endpoints, session, settings.timeout_s))
                if await _wait(stop, began + settings.interval_s - monotonic()):
                    return EXIT_OK


async def _once(
    settings: TopSettings, endpoints: list[Endpoint], session: aiohttp.ClientSession, stop: asyncio.Event
) -> int:
    await look_at_all(endpoints, session, settings.timeout_s)
    if await _wait(stop, settings.interval_s):
        return EXIT_INTERRUPTED
    view = await look_at_all(endpoints, session, settings.timeout_s)
    _print(view, as_json=settings.as_json)
    return EXIT_OK if view.all_up else EXIT_DOWN


async def _wait(stop: asyncio.Event, seconds: float) -> bool:
    """Let this time pass; True if it is to end."""
    try:
        await asyncio.wait_for(stop.wait(), max(seconds, 0.0))
    except asyncio.TimeoutError:
        return stop.is_set()
    return True


@contextmanager
def _shown(settings: TopSettings) -> Iterator[Callable[[View], None]]:
    """How frames are shown: on a terminal each in the place of the last one, else one after the other."""
    console = Console()
    if settings.as_json or not console.is_terminal:
        yield lambda view: _print(view, as_json=settings.as_json)
        return
    # It draws when it is told to: a thread of its own would draw in between.
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda view: live.update(draw(view, HINT), refresh=True)


def _print(view: View, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(view) | {"all_up": view.all_up}) + "\n")
        sys.stdout.flush()
    else:
        Console().print(draw(view))


@contextmanager
def _quit_key(stop: asyncio.Event) -> Iterator[None]:
    """Keys are read as they are pressed, if there is a keyboard."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard = sys.stdin.fileno()

    def pressed() -> None:
        keys = os.read(keyboard, 64)
        if not keys or QUIT_KEYS & set(keys):
            stop.set()

    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, pressed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)

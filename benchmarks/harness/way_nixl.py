"""NIXL itself, driven as well as it can be: no kv-core at all.

Both sides know the page sets beforehand. The descriptor lists are prepared once, strided, for all buffers and slots; each
room is arrays of int32 indices made before the clock starts, in requests of at most ``REQUEST`` descriptors (larger ones
cost more for each), many of them in flight, and NIXL merges neighbours. One thread has the agent, and no progress thread
spins beside it. UCX's own threads help where the sender copies (1.6x over CMA) and hurt over TCP (0.4x), so that they are
there in the first case only. Over TCP the receiver lands what comes by driving its agent; a plain socket tells it when
that is over.
"""

from __future__ import annotations

import base64
import importlib
import logging
import os
import select
import socket
import uuid
from time import monotonic, sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.memory import Memory, page_sets
from benchmarks.harness.window import Piece, Window
from benchmarks.harness.work import Work

REQUEST = 4_096
THREADS = 8
WINDOW_BYTES = 1 << 30
LOOK_S = 0.000_2
"""How often the receiver drives its agent when nothing comes."""
POLL_S = 0.000_05
"""The sender's pause when no request has ended."""
Indices = npt.NDArray[np.int32]


def over_tcp() -> bool:
    """Whether UCX was told to take TCP and nothing else."""
    return os.environ.get("UCX_TLS", "").split(",")[0] == "tcp"


class NixlWay:
    """Both sides; ``source`` says which. ``options``: ``threads``, ``request``, ``window``, ``look_s``, ``poll_s``, and ``progress_us`` for a progress
    thread that looks so seldom (None: there is none).
    """

    def __init__(self, memory: Memory, *, source: bool) -> None:
        self._memory = memory
        self._source = source
        self._options: dict[str, Any] = {}
        self._agent: Any = None
        self._registered: Any = None
        self._lists: tuple[Any, ...] = ()
        self._peer = ""
        self._their_pages = 0
        self._listener: socket.socket | None = None
        self._socket: socket.socket | None = None
        self._made: dict[tuple[int, int, str], list[list[tuple[int, tuple[Indices, Indices]]]]] = {}

    def open(self, options: dict[str, Any]) -> dict[str, Any]:
        """Start the agent and register the memory."""
        self._options = {
            "threads": 0 if over_tcp() else THREADS, "request": REQUEST, "look_s": LOOK_S, "poll_s": POLL_S,
            "window": WINDOW_BYTES, "progress_us": None, **options,
        }  # fmt: skip
        importlib.import_module("nixl")
        api = importlib.import_module("nixl._api")
        logging.getLogger("nixl").setLevel(logging.WARNING)
        config = api.nixl_agent_config(enable_prog_thread=False, backends=[])
        agent = self._agent = api.nixl_agent(f"bench-{uuid.uuid4().hex}", config)
        if self._options["progress_us"] is not None:
            agent.agent = _delayed(api.nixlBind, agent.name, self._options["progress_us"])
        threads = self._options["threads"]
        agent.create_backend("UCX", {"num_threads": str(threads)} if threads and self._source else {})
        shape = self._memory.shape
        addresses = [self._memory.address(buffer) for buffer in range(shape.buffers)]
        ranges = np.array([(address, shape.pages * shape.item_bytes, 0) for address in addresses], np.uint64)
        self._registered = agent.register_memory(ranges, "DRAM")
        told = {"addresses": addresses, "pages": shape.pages, "metadata": _text(agent.get_agent_metadata())}
        if not self._source:
            self._listener = socket.create_server(("127.0.0.1", 0))
            told["port"] = self._listener.getsockname()[1]
        return told

    def connect(self, told: dict[str, Any]) -> None:
        """Prepare the descriptor lists, on the sending side."""
        if not self._source:
            return
        agent, shape = self._agent, self._memory.shape
        self._peer = agent.add_remote_agent(base64.b64decode(told["metadata"])).decode()
        self._their_pages = told["pages"]
        own = [self._memory.address(buffer) for buffer in range(shape.buffers)]
        self._lists = (
            agent.prep_xfer_dlist("NIXL_INIT_AGENT", self._strided(own, shape.pages), "DRAM"),
            agent.prep_xfer_dlist(self._peer, self._strided(told["addresses"], told["pages"]), "DRAM"),
        )
        self._socket = socket.create_connection(("127.0.0.1", told["port"]))

    def _strided(self, addresses: list[int], pages: int) -> npt.NDArray[np.uint64]:
        size = self._memory.shape.item_bytes
        return np.array([(address, size, 0, size, pages) for address in addresses], np.uint64)

    def run(self, work: Work) -> dict[str, Any]:
        """Move the rooms, or drive the agent until they have been moved."""
        if not self._source:
            return self._serve()
        window = Window(work.rooms, work.concurrency, self._rooms(work), self._options["window"])
        connection = self._socket
        assert connection is not None, "connected"
        connection.recv(1)  # the receiver is there
        start = monotonic()
        self._move(window)
        end = monotonic()
        connection.sendall(b"\1")
        return {"start": start, "end": end}

    def _move(self, window: Window[tuple[Indices, Indices]]) -> None:
        agent, (mine, theirs), pause = self._agent, self._lists, self._options["poll_s"]
        in_flight: list[tuple[Any, Piece[tuple[Indices, Indices]]]] = []
        while not window.over:
            while (piece := window.take()) is not None:
                handle = agent.make_prepped_xfer("WRITE", mine, piece.what[0], theirs, piece.what[1])
                if agent.transfer(handle) == "DONE":
                    handle.release()
                    window.ended(piece)
                else:
                    in_flight.append((handle, piece))
            pending = []
            for handle, piece in in_flight:
                if agent.check_xfer_state(handle) == "DONE":
                    handle.release()
                    window.ended(piece)
                else:
                    pending.append((handle, piece))
            if pending and len(pending) == len(in_flight):
                sleep(pause)
            in_flight = pending

    def _serve(self) -> dict[str, Any]:
        if self._socket is None:
            assert self._listener is not None, "open"
            self._socket, _ = self._listener.accept()
        connection, agent, pause = self._socket, self._agent, self._options["look_s"]
        connection.sendall(b"r")
        while not select.select([connection], [], [], pause)[0]:
            agent.get_new_notifs()
        connection.recv(1)
        return {}

    def _rooms(self, work: Work) -> list[list[tuple[int, tuple[Indices, Indices]]]]:
        """For each slot its requests: indices into both lists, cut between pages."""
        key = (work.pages, work.concurrency, work.pattern)
        if key not in self._made:
            mine = page_sets(self._memory.shape.pages, work.pages, work.concurrency, work.pattern, 1)
            theirs = page_sets(self._their_pages, work.pages, work.concurrency, work.pattern, 2)
            self._made = {key: [self._requests(*sets) for sets in zip(mine, theirs, strict=True)]}
        return self._made[key]

    def _requests(
        self, mine: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]
    ) -> list[tuple[int, tuple[Indices, Indices]]]:
        shape = self._memory.shape
        buffers = np.arange(shape.buffers, dtype=np.int32)[:, None]
        step = max(1, self._options["request"] // shape.buffers)
        requests = []
        for at in range(0, len(mine), step):
            here = (buffers * shape.pages + mine[at : at + step].astype(np.int32)).ravel()
            there = (buffers * self._their_pages + theirs[at : at + step].astype(np.int32)).ravel()
            requests.append((len(here) * shape.item_bytes, (here, there)))
        return requests

    def close(self) -> None:
        """Give back lists, peer and memory; the agent ends with this object."""
        for each in (self._socket, self._listener):
            if each is not None:
                each.close()
        if self._agent is None:
            return
        for prepared in self._lists:
            prepared.release()
        if self._peer:
            self._agent.remove_remote_agent(self._peer)
        self._agent.deregister_memory(self._registered)
        self._lists, self._registered, self._agent = (), None, None


def _delayed(bindings: Any, name: str, microseconds: int) -> Any:
    """An agent with a progress thread that pauses; NIXL's Python class can only make one that spins."""
    config = bindings.nixlAgentConfig()
    config.useProgThread, config.pthrDelay = True, microseconds
    config.syncMode = bindings.NIXL_THREAD_SYNC_STRICT
    return bindings.nixlAgent(name, config)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()

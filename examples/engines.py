"""Two toy engines around the tiny model: what a real engine's scheduler does with kv-core's senders and receivers.

Each tensor-parallel rank of an engine is a process of its own, with its own manager, its share of the model and of the KV
cache. kv-core moves each prefill rank's heads to the decode ranks that need them; what is left to an engine is that its
ranks go on together (``Engine.run``). Requests and answers are dicts over a pipe.
"""

from __future__ import annotations

from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensor_parallel import Group
from tiny_llama import DTYPE, HEAD_DIM, KV_HEADS, LAYERS, TinyLlama

import kv_core
from kv_core import Buffer, ItemLayout, KVArgs, KVPoll, Pool, Role, Topology, TransferConfig

PAGE_TOKENS = 16
PAGES = 128
ROWS = 64
POLL_S = 0.002
NOTHING = PAGES - 1
"""A page that is never written: sent in place of a withheld one."""


class PagePool:
    """KV pages of ``PAGE_TOKENS`` tokens, K and V of each layer in a buffer of its own; and auxiliary rows.

    ``kv[layer, 0 or 1, page]`` has shape (KV heads held here, PAGE_TOKENS, HEAD_DIM). A row holds (first token, tokens,
    room).
    """

    def __init__(self, group: Group) -> None:
        self.held = group.share(KV_HEADS)
        self.topology = Topology(tp_rank=group.rank, tp_size=group.size)
        heads = self.held.stop - self.held.start
        self.kv = torch.zeros(LAYERS, 2, PAGES, heads, PAGE_TOKENS, HEAD_DIM, dtype=DTYPE)
        self.rows = np.zeros((ROWS, 3), np.int64)
        self.free_pages = list(range(NOTHING))
        self.free_rows = list(range(ROWS))

    def args(self) -> KVArgs:
        """The pool as kv-core wants it described. ``page`` says what a page is made of and what of the model's heads is here:
        that is what lets the other side have another number of ranks.
        """
        page = ItemLayout.page(
            PAGE_TOKENS, KV_HEADS, HEAD_DIM * DTYPE.itemsize, tp_size=self.topology.tp_size, order="HND"
        )
        buffers = [
            Buffer(self.kv[layer, part].data_ptr(), page.nbytes, PAGES, layer, "kv"[part], page)
            for layer in range(LAYERS)
            for part in (0, 1)
        ]
        aux = Buffer(self.rows.ctypes.data, self.rows[0].nbytes, ROWS)
        return KVArgs(
            Pool("kv", tuple(buffers)), Pool("aux", (aux,)), page_size=PAGE_TOKENS, dtype=str(DTYPE), kv_layout="HND",
            model="tiny-llama", num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, topology=self.topology,
        )  # fmt: skip

    def take(self, tokens: int) -> tuple[list[int], int] | None:
        """Pages and a row for so many tokens, in no particular order of pages; None if there are not enough."""
        need = -(-tokens // PAGE_TOKENS)
        if len(self.free_pages) < need or not self.free_rows:
            return None
        return [self.free_pages.pop(0) for _ in range(need)], self.free_rows.pop(0)

    def give_back(self, pages: list[int], row: int) -> None:
        """The pages and the row may be used again."""
        self.free_pages.extend(pages)
        self.free_rows.append(row)

    def write(self, pages: list[int], keys_values: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Put a prompt's keys and values into pages."""
        for layer, pair in enumerate(keys_values):
            for part, tensor in enumerate(pair):
                for number, page in enumerate(pages):
                    piece = tensor[:, number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS]
                    self.kv[layer, part, page, :, : piece.shape[1]] = piece

    def read(self, pages: list[int], tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A prompt's keys and values from pages."""
        parts = [[torch.cat(list(self.kv[n, p, pages]), dim=1)[:, :tokens] for p in (0, 1)] for n in range(LAYERS)]
        return [(keys, values) for keys, values in parts]


class Engine:
    """One rank's scheduler loop: takes requests, steps each one, and gives pages back when kv-core says that it is safe.

    All ranks of an engine must do the same things in the same order, for the model's sums wait for every rank; but each
    has handles of its own, which change when they will. So in every round the ranks agree on what *all* of them have
    seen: of each room the least of the ranks' ``poll()``, which is Failed if the room has failed on any rank, and Success
    only if it is on every one.
    """

    def __init__(self, connection: Connection, manager: Any, group: Group, pool: PagePool, llama: TinyLlama) -> None:
        self.connection, self.manager, self.group, self.pool, self.llama = connection, manager, group, pool, llama
        self.inbox: deque[dict[str, Any] | None] = deque()
        self.requests: list[dict[str, Any]] = []
        self.draining: list[dict[str, Any]] = []
        self.ended = False

    def run(self) -> None:
        """Serve until None has come and every request has been answered."""
        while not self.ended or self.requests or self.draining:
            self.connection.poll(POLL_S)
            while self.connection.poll():
                self.inbox.append(self.connection.recv())
            polls = [int(request["handle"].poll()) for request in self.requests]
            safe = [int(request["handle"].is_release_safe()) for request in self.draining]
            arrived, *agreed = self.group.least([len(self.inbox), *polls, *safe])
            draining = zip(self.draining, agreed[len(polls) :], strict=True)
            requests = zip(self.requests, agreed[: len(polls)], strict=True)
            self.draining = [request for request, free in draining if not self.drained(request, safe=bool(free))]
            self.requests = [request for request, state in requests if not self.step(request, KVPoll(state))]
            for _ in range(arrived):
                self.begin(self.inbox.popleft())

    def begin(self, request: dict[str, Any] | None) -> None:
        """A new request, or None: no more will come."""
        if request is None:
            self.ended = True
            return
        request["handle"] = self.open(request)
        request["tokens"] = self.llama.encode(request["prompt"])
        self.requests.append(request)

    def open(self, request: dict[str, Any]) -> Any:
        """A handle on the request's room."""
        raise NotImplementedError

    def step(self, request: dict[str, Any], state: KVPoll) -> bool:
        """Take a request one step further; ``state`` is what all ranks have reached. True when it has ended."""
        if state is KVPoll.WaitingForInput and "pages" not in request:
            taken = self.pool.take(len(request["tokens"]))
            if taken is not None:
                request["pages"], request["row"] = taken
                self.start(request)
        elif state is KVPoll.Success:
            self.end(request, self.finish(request))
        elif state is KVPoll.Failed:
            self.end(request, {"error": str(request["handle"].failure() or "it failed on another rank")})
        return state.terminal

    def start(self, request: dict[str, Any]) -> None:
        """Both sides are ready, and there are pages for the prompt."""
        raise NotImplementedError

    def finish(self, request: dict[str, Any]) -> dict[str, Any]:
        """All pages have been moved: the answer."""
        raise NotImplementedError

    def end(self, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Answer a request; its pages follow when that is safe. ``clear`` aborts the room if it is another rank's that failed."""
        request["handle"].clear()
        if "pages" in request:
            self.draining.append(request)
        self.connection.send({"room": request["room"], **answer})

    def drained(self, request: dict[str, Any], *, safe: bool) -> bool:
        """Give the pages back if nothing can touch them any more, on any rank: all ranks' pools stay the same."""
        if safe:
            self.pool.give_back(request["pages"], request["row"])
        return safe


class PrefillEngine(Engine):
    """Computes a prompt's keys and values and sends them in two chunks."""

    def open(self, request: dict[str, Any]) -> Any:
        """See ``Engine.open``."""
        return self.manager.create_sender(request["bootstrap"], request["room"])

    def start(self, request: dict[str, Any]) -> None:
        """Run the model and hand the pages over."""
        first, keys_values = self.llama.prefill(request["tokens"])
        self.pool.write(request["pages"], keys_values)
        self.pool.rows[request["row"]] = (first, len(request["tokens"]), request["room"])
        sent = list(request["pages"])
        half = len(sent) // 2
        if request["fault"] == "page":
            sent[half] = NOTHING
        if request["fault"] == "head" and self.pool.held.stop == KV_HEADS:  # the model's last head is held here
            self.pool.kv[:, :, sent, -1] = 0
        handle = request["handle"]
        handle.init(len(sent), aux_index=request["row"])
        for chunk in (sent[:half], sent[half:]):
            if chunk:
                handle.send(np.array(chunk))

    def finish(self, request: dict[str, Any]) -> dict[str, Any]:
        """See ``Engine.finish``."""
        return {"sent": len(request["pages"])}


class DecodeEngine(Engine):
    """Receives a prompt's keys and values and generates from them."""

    def open(self, request: dict[str, Any]) -> Any:
        """See ``Engine.open``."""
        handle = self.manager.create_receiver(request["bootstrap"], request["room"])
        handle.init()
        return handle

    def start(self, request: dict[str, Any]) -> None:
        """Say where the pages shall go."""
        pages, handle = request["pages"], request["handle"]
        self.pool.kv[:, :, pages] = float("nan")
        handle.send_metadata(np.array(pages), aux_index=request["row"])
        if request["fault"] == "rank" and self.group.rank == self.group.size - 1:
            handle.abort("asked to fail on this rank")

    def finish(self, request: dict[str, Any]) -> dict[str, Any]:
        """Generate. Every rank comes to the same tokens."""
        first, tokens, room = (int(value) for value in self.pool.rows[request["row"]])
        if (tokens, room) != (len(request["tokens"]), request["room"]):
            raise RuntimeError(f"the auxiliary row is that of room {room}, expected {request['room']}")
        keys_values = self.pool.read(request["pages"], tokens)
        return {"output": self.llama.decode(first, keys_values, request["max_tokens"])}


def serve(connection: Connection, role: Role, rank: int, size: int) -> None:
    """Run one rank. The first message is its settings; an end of file, the router's death, ends it."""
    settings = connection.recv()
    group = Group(rank, size, Path(settings["meet"]))
    pool, llama = PagePool(group), TinyLlama(Path(settings["model"]), group)
    config = TransferConfig(bootstrap_addr=settings["bootstrap"])
    kind = PrefillEngine if role is Role.PREFILL else DecodeEngine
    with kv_core.load_backend(settings["backend"]).create_manager(role, pool.args(), config) as manager:
        connection.send({"ready": rank})
        kind(connection, manager, group, pool, llama).run()

"""Two toy engines around the tiny model: what a real engine's scheduler does with kv-core's senders and receivers.

Run as a process each: settings as one JSON argument, requests as JSON lines on standard input, answers on standard output.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_llama import HEAD_DIM, KV_HEADS, LAYERS, TinyLlama

import kv_core
from kv_core import Buffer, KVArgs, KVPoll, Pool, Role, TransferConfig

PAGE_TOKENS = 16
PAGES = 256
ROWS = 64
POLL_S = 0.001
NOTHING = PAGES - 1
"""A page that is never written: sent in place of a withheld one."""


class PagePool:
    """KV pages of ``PAGE_TOKENS`` tokens, float32, K and V of each layer in a buffer of its own; and auxiliary rows.

    ``kv[layer, 0 or 1, page]`` has shape (KV_HEADS, PAGE_TOKENS, HEAD_DIM). A row holds (first token, tokens, room).
    """

    def __init__(self) -> None:
        self.kv = torch.zeros(LAYERS, 2, PAGES, KV_HEADS, PAGE_TOKENS, HEAD_DIM)
        self.rows = np.zeros((ROWS, 3), np.int64)
        self.free_pages = list(range(NOTHING))
        self.free_rows = list(range(ROWS))

    def args(self) -> KVArgs:
        """The pool as kv-core wants it described."""
        item = KV_HEADS * PAGE_TOKENS * HEAD_DIM * 4
        buffers = [
            Buffer(self.kv[layer, part].data_ptr(), item, PAGES, layer, "kv"[part])
            for layer in range(LAYERS)
            for part in (0, 1)
        ]
        aux = Buffer(self.rows.ctypes.data, self.rows[0].nbytes, ROWS)
        return KVArgs(
            Pool("kv", tuple(buffers)), Pool("aux", (aux,)), page_size=PAGE_TOKENS, dtype="float32", kv_layout="HND",
            model="tiny-llama", num_kv_heads=KV_HEADS, head_dim=HEAD_DIM,
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
    """A scheduler loop: takes requests, steps each one, and gives pages back when kv-core says that it is safe."""

    def __init__(self, settings: dict[str, Any], manager: Any, pool: PagePool, llama: TinyLlama) -> None:
        self.settings, self.manager, self.pool, self.llama = settings, manager, pool, llama
        self.requests: list[dict[str, Any]] = []
        self.draining: list[tuple[Any, list[int], int]] = []

    def run(self) -> None:
        """Serve until standard input ends and every request has been answered."""
        incoming: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read_lines, args=(incoming,))
        reader.start()
        pause = threading.Event()
        ended = False
        while not ended or self.requests or self.draining:
            while not incoming.empty():
                request = incoming.get()
                ended = ended or request is None
                if request is not None:
                    self.requests.append(request)
            self.requests = [request for request in self.requests if not self.step(request)]
            self.draining = [entry for entry in self.draining if not self.released(*entry)]
            pause.wait(POLL_S)
        reader.join()

    def step(self, request: dict[str, Any]) -> bool:
        """Take a request one step further; True when it has ended."""
        raise NotImplementedError

    def end(self, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Answer a request; its pages follow when that is safe."""
        handle = request["handle"]
        if handle.poll() is KVPoll.Failed:
            answer = {"error": str(handle.failure())}
        handle.clear()
        if "pages" in request:
            self.draining.append((handle, request["pages"], request["row"]))
        sys.stdout.write(json.dumps({"id": request["id"], "room": request["room"], **answer}) + "\n")
        sys.stdout.flush()

    def released(self, handle: Any, pages: list[int], row: int) -> bool:
        """Give the pages back if nothing can touch them any more."""
        if not handle.is_release_safe():
            return False
        self.pool.give_back(pages, row)
        return True


class PrefillEngine(Engine):
    """Computes a prompt's keys and values and sends them in two chunks."""

    def step(self, request: dict[str, Any]) -> bool:
        """See ``Engine.step``."""
        if "handle" not in request:
            request["handle"] = self.manager.create_sender(request["bootstrap"], request["room"])
            request["tokens"] = self.llama.encode(request["prompt"])
        handle = request["handle"]
        state = handle.poll()
        if state is KVPoll.WaitingForInput and "pages" not in request:
            taken = self.pool.take(len(request["tokens"]))
            if taken is not None:
                self.compute(request, *taken)
        if state.terminal:
            self.end(request, {"sent": len(request.get("pages", ()))})
        return bool(state.terminal)

    def compute(self, request: dict[str, Any], pages: list[int], row: int) -> None:
        """Run the model and hand the pages over."""
        request["pages"], request["row"] = pages, row
        first, keys_values = self.llama.prefill(request["tokens"])
        self.pool.write(pages, keys_values)
        self.pool.rows[row] = (first, len(request["tokens"]), request["room"])
        sent = list(pages)
        if request["withhold"]:
            sent[len(sent) // 2] = NOTHING
        handle = request["handle"]
        handle.init(len(sent), aux_index=row)
        half = len(sent) // 2
        for chunk in (sent[:half], sent[half:]):
            if chunk:
                handle.send(np.array(chunk))


class DecodeEngine(Engine):
    """Receives a prompt's keys and values and generates from them."""

    def step(self, request: dict[str, Any]) -> bool:
        """See ``Engine.step``."""
        if "handle" not in request:
            request["handle"] = self.manager.create_receiver(request["bootstrap"], request["room"])
            request["handle"].init()
            request["tokens"] = self.llama.encode(request["prompt"])
        handle = request["handle"]
        state = handle.poll()
        if state is KVPoll.WaitingForInput and "pages" not in request:
            taken = self.pool.take(len(request["tokens"]))
            if taken is not None:
                request["pages"], request["row"] = taken
                self.pool.kv[:, :, taken[0]] = float("nan")
                handle.send_metadata(np.array(taken[0]), aux_index=taken[1])
        if state is KVPoll.Success:
            first, tokens, room = (int(value) for value in self.pool.rows[request["row"]])
            if (tokens, room) != (len(request["tokens"]), request["room"]):
                raise RuntimeError(f"the auxiliary row is that of room {room}, expected {request['room']}")
            keys_values = self.pool.read(request["pages"], tokens)
            self.end(request, {"output": self.llama.decode(first, keys_values, self.settings["tokens"])})
        elif state is KVPoll.Failed:
            self.end(request, {})
        return bool(state.terminal)


def _read_lines(incoming: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        incoming.put(json.loads(line))
    incoming.put(None)


def main() -> None:
    """Run one engine."""
    settings = json.loads(sys.argv[1])
    role = Role(settings["role"])
    pool, llama = PagePool(), TinyLlama(Path(settings["model"]))
    config = TransferConfig(bootstrap_addr=settings["bootstrap"] if role is Role.PREFILL else None)
    backend = kv_core.load_backend(settings["backend"])
    with backend.create_manager(role, pool.args(), config) as manager:
        kind = PrefillEngine if role is Role.PREFILL else DecodeEngine
        sys.stdout.write(json.dumps({"ready": role.value}) + "\n")
        sys.stdout.flush()
        kind(settings, manager, pool, llama).run()


if __name__ == "__main__":
    main()

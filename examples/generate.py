"""Generate text with prefill in one process and decode in another, and compare with one process, token for token.

A Hugging Face Llama (random weights, made on the spot) reads the prompts of a text file in the prefill process; its KV
cache goes through kv-core in pages of 16 tokens to the decode process, which generates from it. Requests go in random
order, several at a time. Then the same prompts once more with one page withheld: now every output must differ.

    python examples/generate.py --backend fake
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tiny_llama import TinyLlama, make_model

import kv_core

HERE = Path(__file__).parent
ANSWER_S = 120.0
"""Longest time without any answer."""


class Rank:
    """One engine process."""

    def __init__(self, role: str, settings: dict[str, Any], answers: SimpleQueue[tuple[str, dict[str, Any]]]) -> None:
        self.role = role
        command = [sys.executable, str(HERE / "engines.py"), json.dumps(settings | {"role": role})]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, args=(answers,))
        self._reader.start()

    def _read(self, answers: SimpleQueue[tuple[str, dict[str, Any]]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answers.put((self.role, json.loads(line)))
        answers.put((self.role, {"ended": self.process.wait()}))

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def end(self, *, kill: bool) -> None:
        """Let the process finish, or kill it."""
        assert self.process.stdin is not None
        if kill:
            self.process.kill()
        self.process.stdin.close()
        self.process.wait(60)
        self._reader.join(10)


class Router:
    """Gives each request to both processes at once, as a router does, a few at a time."""

    def __init__(self, settings: dict[str, Any], concurrency: int) -> None:
        self._bootstrap = settings["bootstrap"]
        self._concurrency = concurrency
        self._answers: SimpleQueue[tuple[str, dict[str, Any]]] = SimpleQueue()
        self._room = 0
        self._ranks: list[Rank] = []
        try:
            for role in ("prefill", "decode"):
                self._ranks.append(Rank(role, settings, self._answers))
            for _ in self._ranks:
                self._answer()
        except BaseException:
            self.close(kill=True)
            raise

    def _answer(self) -> tuple[str, dict[str, Any]]:
        role, answer = self._answers.get(timeout=ANSWER_S)
        if "ended" in answer:
            raise RuntimeError(f"the {role} process ended with status {answer['ended']}")
        return role, answer

    def run(self, prompts: list[str], order: list[int], *, withhold: bool) -> list[Any]:
        """Generate for every prompt; the outputs in the prompts' order (a string is a failure)."""
        outputs: list[Any] = [None] * len(prompts)
        waiting = list(order)
        pending: dict[int, set[str]] = {}
        while waiting or pending:
            while waiting and len(pending) < self._concurrency:
                number = waiting.pop(0)
                self._room += 1
                request = {
                    "id": number, "prompt": prompts[number], "room": self._room, "bootstrap": self._bootstrap,
                    "withhold": withhold,
                }  # fmt: skip
                pending[number] = {"prefill", "decode"}
                for rank in self._ranks:
                    rank.ask(request)
            role, answer = self._answer()
            number = answer["id"]
            if role == "decode" or "error" in answer:
                outputs[number] = answer.get("output", answer.get("error"))
            pending[number].discard(role)
            if not pending[number]:
                del pending[number]
        return outputs

    def close(self, *, kill: bool = False) -> None:
        """End both processes."""
        for rank in self._ranks:
            rank.end(kill=kill)


def main() -> int:
    """Run the example; 0 if all outputs are equal and a withheld page is seen in each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="fake")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.txt")
    parser.add_argument("--tokens", type=int, default=24, help="tokens to generate for each prompt")
    parser.add_argument("--concurrency", type=int, default=6)
    parser.add_argument(
        "--rounds", type=int, default=2, help="how often to run all prompts, each time in another order"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    options = parser.parse_args()
    prompts = [line for line in options.prompts.read_text().splitlines() if line.strip()]
    rng = random.Random(options.seed)
    print(f"seed {options.seed}: repeat with --seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder, kv_core.BootstrapServer("127.0.0.1", 0) as server:
        make_model(Path(folder), prompts, options.seed)
        llama = TinyLlama(Path(folder))
        expected = [llama.generate(llama.encode(prompt), options.tokens) for prompt in prompts]
        settings = {
            "model": folder, "backend": options.backend, "bootstrap": server.address, "tokens": options.tokens,
        }  # fmt: skip
        router = Router(settings, options.concurrency)
        try:
            equal = 0
            for _ in range(options.rounds):
                order = rng.sample(range(len(prompts)), len(prompts))
                outputs = router.run(prompts, order, withhold=False)
                equal += _report(prompts, expected, outputs)
            withheld = router.run(prompts, list(range(len(prompts))), withhold=True)
        except BaseException:
            router.close(kill=True)
            raise
        router.close()
    seen = sum(isinstance(output, list) and output != wanted for output, wanted in zip(withheld, expected, strict=True))
    total = options.rounds * len(prompts)
    print(f"backend {options.backend}: {equal} of {total} outputs equal to the single process, token for token")
    print(f"one page withheld: {seen} of {len(prompts)} outputs differ")
    return 0 if (equal, seen) == (total, len(prompts)) else 1


def _report(prompts: list[str], expected: list[Any], outputs: list[Any]) -> int:
    equal = 0
    for prompt, wanted, got in zip(prompts, expected, outputs, strict=True):
        equal += got == wanted
        if got != wanted:
            print(f"DIFFERS: {prompt[:60]!r}\n  expected {wanted}\n  got      {got}")
    return equal


if __name__ == "__main__":
    sys.exit(main())

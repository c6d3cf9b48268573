"""Generate text with prefill and decode in processes of their own, and compare with one process, token for token.

A Hugging Face Llama (random weights, made on the spot) reads the prompts of a text file on the prefill side; its KV cache
goes through kv-core in pages of 16 tokens to the decode side, which generates from it. Each side has a process for each
tensor-parallel rank, which holds its share of the heads, and the sides need not have as many:

    python examples/generate.py --backend fake
    python examples/generate.py --prefill-tp 2 --decode-tp 1
    python examples/generate.py --prefill-tp 1 2 --decode-tp 1 2    # two instances on each side, and every pair of them

Requests go in random order, several at a time. Then the same prompts three times more: with one page withheld and with one
rank's share withheld (one KV head), when every output must differ, and with one decode rank failing, when all must give up.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from instances import Instance, answers, started
from tiny_llama import TinyLlama, make_model

from kv_core import BootstrapServer

HERE = Path(__file__).parent
FAULTS = {
    "": "outputs equal to the single process, token for token",
    "page": "outputs differ with one page withheld",
    "head": "outputs differ with one rank's share withheld (one KV head)",
    "rank": "requests end on all ranks when one decode rank fails",
}


@dataclass
class Job:
    """A prompt on its way through two instances, and the answers of their ranks in the order in which they came."""

    number: int
    prompt: str
    prefill: Instance
    decode: Instance
    outputs: list[list[int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    waiting: int = 0

    def good(self, fault: str, expected: list[int]) -> bool:
        """Whether all ranks have answered what they should."""
        if fault == "rank":
            return len(self.errors) == self.prefill.size + self.decode.size
        if fault:
            return not self.errors and expected not in self.outputs
        return self.outputs == [expected] * self.decode.size


class Router:
    """Gives each request to all ranks of both sides at once, as a router does, a few requests at a time."""

    def __init__(self, instances: list[Instance], tokens: int, concurrency: int) -> None:
        self._instances, self._tokens, self._concurrency = instances, tokens, concurrency
        self._room = 0

    def run(self, jobs: list[Job], fault: str) -> None:
        """Do these jobs; ``fault`` is what shall go wrong (empty: nothing)."""
        left, pending = list(jobs), dict[int, Job]()
        while left or pending:
            while left and len(pending) < self._concurrency:
                job = left.pop(0)
                self._room += 1
                pending[self._room] = job
                request = {
                    "room": self._room, "bootstrap": job.prefill.bootstrap, "prompt": job.prompt,
                    "max_tokens": self._tokens, "fault": fault,
                }  # fmt: skip
                for instance in (job.prefill, job.decode):
                    job.waiting += instance.size
                    instance.tell(request)
            for answer in answers(self._instances):
                job = pending[answer["room"]]
                job.waiting -= 1
                job.outputs += [answer["output"]] if "output" in answer else []
                job.errors += [answer["error"]] if "error" in answer else []
                if not job.waiting:
                    del pending[answer["room"]]


def main() -> int:
    """Run the example; 0 if all outputs are equal and each fault shows in all of them."""
    options = _options()
    print(f"seed {options.seed}: repeat with --seed {options.seed}")
    prompts = [line for line in options.prompts.read_text().splitlines() if line.strip()]
    with (
        tempfile.TemporaryDirectory() as name,
        ExitStack() as servers,
        started(options.prefill_tp, options.decode_tp) as (prefills, decodes),
    ):
        folder, instances = Path(name), [*prefills, *decodes]
        make_model(folder, prompts, options.seed)
        for instance in prefills:
            instance.bootstrap = servers.enter_context(BootstrapServer("127.0.0.1", 0)).address
        for number, instance in enumerate(instances):
            settings = {"model": folder, "backend": options.backend, "bootstrap": instance.bootstrap}
            instance.tell({**settings, "meet": folder / f"instance-{number}"})
        llama = TinyLlama(folder)
        expected = [llama.generate(llama.encode(prompt), options.tokens) for prompt in prompts]
        ready = 0
        while ready < sum(instance.size for instance in instances):
            ready += len(answers(instances))
        router, rng = Router(instances, options.tokens, options.concurrency), random.Random(options.seed)
        done: dict[str, list[Job]] = {fault: [] for fault in FAULTS}
        for fault in [""] * options.rounds + [fault for fault in FAULTS if fault]:
            jobs = [Job(*prompt, *pair) for prompt, *pair in product(enumerate(prompts), prefills, decodes)]
            router.run(rng.sample(jobs, len(jobs)), fault)
            done[fault] += jobs
    return 0 if _report(options.backend, done, expected) else 1


def _report(backend: str, done: dict[str, list[Job]], expected: list[list[int]]) -> bool:
    """Print what came of each pair of sizes; whether all is well."""
    all_good = True
    for sizes in sorted({(job.prefill.size, job.decode.size) for job in done[""]}):
        print(f"backend {backend}, prefill tp {sizes[0]}, decode tp {sizes[1]}:")
        for fault, told in FAULTS.items():
            jobs = [job for job in done[fault] if (job.prefill.size, job.decode.size) == sizes]
            bad = [job for job in jobs if not job.good(fault, expected[job.number])]
            print(f"  {len(jobs) - len(bad)} of {len(jobs)} {told}")
            for job in bad:
                print(
                    f"    {job.prompt[:60]!r}\n      expected {expected[job.number]}\n      got      {job.outputs} {job.errors}"
                )
            all_good = all_good and not bad
    return all_good


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="fake")
    for side in ("prefill", "decode"):
        told = (
            f"tensor-parallel ranks of the {side} side (of 8 heads and 4 KV heads); several: an instance of each size"
        )
        parser.add_argument(f"--{side}-tp", type=int, nargs="+", default=[1], choices=(1, 2, 4, 8), help=told)
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.txt")
    parser.add_argument("--tokens", type=int, default=24, help="tokens to generate for each prompt")
    parser.add_argument("--concurrency", type=int, default=6)
    parser.add_argument(
        "--rounds", type=int, default=2, help="how often to run all prompts, each time in another order"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

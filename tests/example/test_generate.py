"""The example on real input: what it prints and how it ends."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = [name for name in ("torch", "transformers", "tokenizers") if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (`make example` installs them)")
def test_every_pair_of_sizes_generates_what_one_process_does_and_what_goes_wrong_is_seen(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join((ROOT / "examples" / "prompts.txt").read_text().splitlines()[2::3]))
    command = [sys.executable, str(ROOT / "examples" / "generate.py"), "--prompts", str(prompts), "--rounds", "1"]
    command += ["--tokens", "12", "--prefill-tp", "1", "2", "--decode-tp", "1", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # The pairs, each with its own outputs, and nothing that was not looked at.
    pairs = [
        (int(prefill), int(decode)) for prefill, decode in re.findall(r"prefill tp (\d), decode tp (\d):", done.stdout)
    ]
    assert pairs == list(product((1, 2), repeat=2)), done.stdout
    for told in ("outputs equal", "differ with one page", "differ with one rank's share", "end on all ranks"):
        assert len(re.findall(rf"^  4 of 4 .*{told}", done.stdout, re.MULTILINE)) == len(pairs), done.stdout

"""The example on real input: what it prints and how it ends."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = [name for name in ("torch", "transformers", "tokenizers") if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (`make example` installs them)")
def test_two_processes_generate_what_one_does_and_a_withheld_page_is_seen():
    command = [sys.executable, str(ROOT / "examples" / "generate.py"), "--rounds", "1", "--tokens", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"(\d+) of \1 outputs equal", done.stdout), done.stdout
    assert re.search(r"one page withheld: (\d+) of \1 outputs differ", done.stdout), done.stdout

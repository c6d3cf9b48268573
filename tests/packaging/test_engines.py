"""The engines that `make` was told to install are there and load: a skipped plugin test can't hide that one is missing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASKED_FOR = os.environ.get("KV_ENGINES", "").split()


@pytest.mark.skipif(not ASKED_FOR, reason="KV_ENGINES names no engine (`make test` sets it from ENGINES)")
def test_every_engine_that_was_asked_for_loads() -> None:
    program = "import sys, kv_core\nfor name in sys.argv[1:]: print(kv_core.load_backend(name).info.name)"
    ran = subprocess.run([sys.executable, "-c", program, *ASKED_FOR], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ASKED_FOR

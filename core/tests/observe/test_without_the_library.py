"""Without prometheus-client and opentelemetry-api everything else works, and what needs them says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from core.tests.cli.support import SMALL, kv_core

CODE = """
import sys
sys.modules["prometheus_client"] = sys.modules["opentelemetry"] = None
import kv_core
from kv_core import RequestTimeStats, Role, KVTransferMetric, duration_between
assert duration_between(1.0, 2.0) == 1.0
assert RequestTimeStats(Role.DECODE).compute_and_observe_kv_transfer_metrics(KVTransferMetric(1.0, 1 << 20))
extras = dict.fromkeys(("PrometheusMetrics", "SGLangMetrics", "MetricsServer"), "metrics")
for name, extra in {**extras, "OpenTelemetryObserver": "otel"}.items():
    try:
        getattr(kv_core, name)
    except ModuleNotFoundError as error:
        assert f"kv-core[{extra}]" in str(error), error
    else:
        raise AssertionError(name)
kv_core.FlightRecorder("/dev/null").close()
import kv_core.cli.trace_cmd_run
try:
    from kv_core.observe import nothing
except ImportError as error:
    assert "kv-core[metrics]" not in str(error)
"""


def test_core_works_and_the_error_helps():
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_importing_core_loads_neither_the_library_nor_this_layer():
    code = "import sys, kv_core; print([m for m in sys.modules if 'prometheus' in m or 'opentel' in m or 'kv_core.observe' in m])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


def test_the_demo_says_so_before_it_starts_anything(tmp_path: Path):
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('gone', name='prometheus_client')\n")
    ran = kv_core("demo", "--backend", "fake", *SMALL, "--metrics-port", "0", site=tmp_path)
    assert ran.status == 2
    assert 'pip install "kv-core[metrics]"' in ran.err
    ran = kv_core("demo", "--backend", "fake", "--requests", "3", *SMALL, site=tmp_path)
    assert ran.status == 0, ran

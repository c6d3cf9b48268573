"""Two of the alert rules on their faults, and the scale on which they are judged; `make alerts` runs all of them."""

from __future__ import annotations

import re

import pytest

from core.tests.observe.prometheus_server import MISSING, PROMETHEUS
from core.tests.observe.test_monitoring import RULES, rules
from tests.long import alerts
from tests.support.alert_faults import FAULTS
from tests.support.alert_rules import FACTOR, scaled_rules

QUICK = ("KvCorePeerLost", "KvCoreWrongBytes")
"""Rules without a ``for``."""


def test_there_is_a_fault_for_every_rule():
    assert sorted(fault.alert for fault in FAULTS) == sorted(rule["alert"] for rule in rules())
    others = {name for fault in FAULTS for name in fault.also}
    assert others <= {rule["alert"] for rule in rules()}


def test_scaled_rules_differ_in_durations_alone():
    text = RULES.read_text(encoding="utf-8")
    scaled = scaled_rules(text)
    durations = re.compile(r"\[(\d+[smh])\]|for: (\d+[smh])\b")
    assert durations.sub("", text) == durations.sub("", scaled)
    before, after = (
        [found[1] or found[2] for found in durations.finditer(one)] for one in (text, scaled)
    )  # fmt: skip
    assert len(before) == len(after) > 20
    assert all(int(a[:-1]) * 60 == FACTOR * int(b[:-1]) for a, b in zip(before, after, strict=True)), (
        "no fraction is lost"
    )
    assert all(a.endswith("m") and b.endswith("s") for a, b in zip(before, after, strict=True))


@pytest.mark.skipif(PROMETHEUS is None, reason=MISSING)
@pytest.mark.slow
def test_alerts_fire_on_their_faults():
    rows, violations = alerts.run(QUICK, parallel=2)
    assert not violations, violations
    assert {row["alert"] for row in rows} == set(QUICK)
    assert all(row["fires after s"] > 0 for row in rows)

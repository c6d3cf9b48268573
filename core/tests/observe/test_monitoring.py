"""The dashboard and the alert rules use what is exported, and nothing else; the rules do what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.tests.observe.support import BOTH, INFO, fresh, scrape
from kv_core.observe.schema import SCHEMA

MONITORING = Path(__file__).parents[3] / "monitoring"
DASHBOARD = MONITORING / "grafana/kv-core.json"
RULES = MONITORING / "prometheus/kv-core-rules.yml"
UNIT_TESTS = MONITORING / "prometheus/kv-core-rules-test.yml"
DOCS = MONITORING.parent / "docs/metrics.md"
NAME = re.compile(r"\bkv_core_\w+")
MATCHERS = re.compile(r"\b(kv_core_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
ADDED = {"instance", "job", "le"}
"""Labels that Prometheus adds, or that a histogram's buckets have."""
PROMTOOL = shutil.which("promtool")
with_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def exported() -> dict[str, set[str]]:
    """Every series that a process exports from the start, with its labels."""
    registry, metrics = fresh()
    for role in BOTH:
        metrics.observer(INFO, role)
    found: dict[str, set[str]] = {}
    for sample in scrape(registry).all:
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions(document: Any) -> Iterator[str]:
    """Every query in the dashboard."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("expr", "query", "definition") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(document, list):
        for value in document:
            yield from expressions(value)


def rules() -> list[dict[str, str]]:
    """The rules, read line by line: the file is written in one way, and nothing else here needs YAML."""
    found: list[dict[str, str]] = []
    field = ""
    for line in RULES.read_text(encoding="utf-8").splitlines():
        key, colon, value = line.strip().partition(": ")
        if key == "- alert" and colon:
            found.append({"alert": value})
        elif line.strip() == "expr: |":
            field = "expr"
            found[-1][field] = ""
        elif field and line.startswith(" " * 10) and not line.strip().startswith(("for:", "labels:")):
            found[-1][field] += line.strip() + " "
        elif found and colon and key in ("expr", "for", "labels", "summary", "description"):
            field = ""
            found[-1][key] = value
    return found


def dashboard() -> list[str]:
    return list(expressions(json.loads(DASHBOARD.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("where", ["dashboard", "rules"])
def test_every_name_and_label_that_is_used_is_exported(where: str):
    queries = dashboard() if where == "dashboard" else [rule["expr"] for rule in rules()]
    found = exported()
    used = {name for query in queries for name in NAME.findall(query)}
    assert used
    assert used <= set(found), sorted(used - set(found))
    for query in queries:
        for name, matchers in MATCHERS.findall(query):
            for label, _, _ in MATCHER.findall(matchers):
                assert label in found[name] | ADDED, f"{name} has no label {label}: {query}"
    assert used == {name for name in used if not name.endswith("_created")}


def test_the_values_that_rules_and_dashboard_ask_for_exist():
    """A misspelt reason would make a rule that never fires."""
    registry, metrics = fresh()
    for role in BOTH:
        metrics.observer(INFO, role)
    samples = scrape(registry)
    for query in [*dashboard(), *(rule["expr"] for rule in rules())]:
        for name, matchers in MATCHERS.findall(query):
            for label, operator, value in MATCHER.findall(matchers):
                if label in ("transport", "le", "backend", "role", "instance") or "$" in value:
                    continue
                known = {sample.labels[label] for sample in samples.of(name)}
                wanted = set(value.split("|"))
                assert wanted <= known, f"{label}{operator}{value!r}: {name} has {sorted(known)}"


def test_the_dashboard_shows_every_metric():
    used = {name for query in dashboard() for name in NAME.findall(query)}
    for metric in SCHEMA:
        assert used & set(metric.series), f"no panel shows {metric.name}"


def test_the_dashboard_is_well_formed():
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel["targets"] for panel in board["panels"] if panel["type"] != "row")
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(places) == len(set(places))
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    variables = {variable["name"] for variable in board["templating"]["list"]}
    for query in dashboard():
        assert set(re.findall(r"\$(\w+)", query)) <= variables | {"__rate_interval", "__range"}


def test_every_rule_says_what_it_is_and_is_tested_both_ways():
    text = UNIT_TESTS.read_text(encoding="utf-8")
    fired = set(
        re.findall(r"- name: (\w+) fires\n(?:.*\n)*?        alertname: \1\n        exp_alerts:\n          - ", text)
    )
    silent = set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", text))
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) == RULES.read_text(encoding="utf-8").count("- alert:")
    assert set(names) == fired == silent
    for rule in rules():
        assert rule["expr"]
        assert rule["summary"]
        assert rule["description"]
        assert re.fullmatch(r"\{severity: (info|warning|critical)\}", rule["labels"])


def test_the_page_lists_every_metric_rule_and_nothing_else():
    text = DOCS.read_text(encoding="utf-8")
    series = {name for metric in SCHEMA for name in (metric.name, *metric.series)}
    for metric in SCHEMA:
        listed = f"`{metric.name}_total`" if metric.kind.value == "counter" else f"`{metric.name}`"
        assert listed in text, f"docs/metrics.md does not list {listed}"
    assert set(NAME.findall(text)) <= series
    for rule in rules():
        assert rule["alert"] in text, rule["alert"]


@with_promtool
def test_promtool_takes_the_rules_and_each_fires_and_stays_silent():
    assert PROMTOOL is not None
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(UNIT_TESTS)]):
        ran = subprocess.run([PROMTOOL, *command], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@with_promtool
def test_promtool_finds_nothing_wrong_with_the_exposition():
    from prometheus_client import generate_latest

    assert PROMTOOL is not None
    registry, metrics = fresh()
    metrics.observer(INFO, BOTH[0])
    text = generate_latest(registry)
    ran = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr

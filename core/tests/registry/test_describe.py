"""What ``kv-core backends`` and ``doctor`` are told: every plugin in its own report, none hiding another."""

from __future__ import annotations

import json

import pytest

from core.tests.registry.support import Site
from kv_core import BackendLoadError
from kv_core.contract.records import CheckStatus
from kv_core.registry import PluginReport, Registry, describe_backends, describe_plugins, doctor_checks

CHECKS = """
from kv_core import hookimpl
from kv_core.contract.records import CheckStatus, DoctorCheck, DoctorFinding

@hookimpl
def kv_doctor_checks():
    finding = DoctorFinding("WHO.finding", CheckStatus.OK, "fine")
    return [DoctorCheck("WHO.check", "A check", lambda: [finding])]
"""


def by_name(reports: list[PluginReport]) -> dict[str, PluginReport]:
    return {report.name: report for report in reports}


def test_one_broken_backend_hides_no_good_one(site: Site, registry: Registry):
    """Each way to be broken stands before and after a good one in the alphabet."""
    library = "libmlx5.so.1: cannot open shared object file: No such file or directory"
    site.backend("a-exits", distribution="kv-exits", before="raise SystemExit(4)")
    site.backend("b-good", distribution="kv-b", version="7")
    site.backend("c-library", distribution="kv-library", before=f"raise OSError({library!r})")
    site.backend("d-good", distribution="kv-d")
    site.backend("e-api", distribution="kv-api", change="INFO['api_version'] = (9, 0)")
    site.backend("f-twin", distribution="kv-f1")
    site.backend("f-twin", distribution="kv-f2")
    site.backend("g-silent", distribution="kv-silent", before="raise AssertionError")
    site.backend("h-good", distribution="kv-h")
    reports = by_name(describe_backends(registry))
    assert list(reports) == sorted(reports)
    for name in ("b-good", "d-good", "h-good"):
        report = reports[name]
        assert (report.status, report.error_type, report.error, report.hint) == ("ok", "", "", "")
        assert (report.api, report.capabilities) == ("1.0", ("embedded", "write"))
        assert report.description == "for tests"
    assert (reports["b-good"].distributions, reports["b-good"].version) == (("kv-b",), "7")

    def error(name: str) -> tuple[str, str]:
        assert reports[name].status == "broken"
        assert reports[name].hint
        return reports[name].error_type, reports[name].error

    assert error("a-exits") == ("SystemExit", "4")
    assert error("c-library") == ("OSError", library)
    assert "ibverbs-providers" in reports["c-library"].hint
    kind, text = error("e-api")
    assert kind == "IncompatibleBackend"
    assert "kv-api 1.2 was built for plugin API 9.0" in text
    kind, text = error("f-twin")
    assert "2 entry points have this name" in text
    assert sorted(reports["f-twin"].distributions) == ["kv-f1", "kv-f2"]
    assert reports["f-twin"].version == "1.2, 1.2"
    kind, text = error("g-silent")
    assert kind == "AssertionError"
    assert text.endswith("raised AssertionError: ")


def test_reports_are_json(site: Site, registry: Registry):
    site.backend("good")
    site.backend("bad", distribution="kv-bad", before="1 / 0")
    for report in describe_backends(registry):
        again = json.loads(json.dumps(report.as_dict()))
        assert again["name"] == report.name
        assert again["status"] in ("ok", "broken", "disabled")
        assert again["distributions"] == list(report.distributions)
        assert {"version", "capabilities", "api", "error", "error_type", "hint", "group"} <= set(again)


def test_a_disabled_plugin_is_said_to_be_disabled(site: Site):
    site.backend("good", before="raise SystemExit(1)")
    site.plugin("watch", "raise SystemExit(1)")
    registry = Registry({"KV_CORE_DISABLED_PLUGINS": "good,watch"})
    assert by_name(describe_backends(registry))["good"].status == "disabled"
    assert by_name(describe_plugins(registry))["watch"].status == "disabled"


def test_describing_uses_what_is_loaded_and_sees_what_was_mended(site: Site, registry: Registry):
    change = "import os\ndef preflight():\n    os.environ['KV_TEST_DEVICE']\nRECORD['preflight'] = preflight"
    site.backend("good", change=change)
    report = by_name(describe_backends(registry))["good"]
    assert (report.error_type, report.error) == ("KeyError", "'KV_TEST_DEVICE'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KV_TEST_DEVICE", "1")
        assert by_name(describe_backends(registry))["good"].status == "ok"
    assert by_name(describe_backends(registry))["good"].status == "ok"


def test_observer_plugins_are_described(site: Site, registry: Registry):
    site.plugin("checks", CHECKS, distribution="kv-checks")
    site.plugin("exits", "raise SystemExit('bye')", distribution="kv-exits")
    site.plugin("unmarked", "def kv_peer_event(event): ...", distribution="kv-unmarked", version="8")
    reports = by_name(describe_plugins(registry))
    assert (reports["checks"].status, reports["checks"].hooks) == ("ok", ("kv_doctor_checks",))
    assert (reports["exits"].error_type, reports["exits"].error) == ("SystemExit", "bye")
    assert reports["unmarked"].error_type == "PluginRefused"
    assert reports["unmarked"].version == "8"
    assert "no @hookimpl marker" in reports["unmarked"].error


def test_checks_of_loaded_backends_and_of_plugins_are_collected(site: Site, registry: Registry):
    site.backend("good", after=CHECKS.replace("WHO", "good"))
    site.backend("idle", distribution="kv-idle", after=CHECKS.replace("WHO", "idle"))
    site.plugin("watch", CHECKS.replace("WHO", "watch"))
    site.plugin("exits", "raise SystemExit(1)", distribution="kv-exits")
    assert [check.id for check in doctor_checks(registry)] == ["watch.check"]
    registry.load_backend("good")
    checks = doctor_checks(registry)
    assert [check.id for check in checks] == ["good.check", "watch.check"]
    assert [finding.id for check in checks for finding in check.run()] == ["good.finding", "watch.finding"]


def test_a_backend_whose_engine_is_missing_still_brings_its_checks(site: Site, registry: Registry):
    change = "RECORD['preflight'] = lambda: open('/no/such/device')"
    site.backend("good", change=change, after=CHECKS.replace("WHO", "good"))
    with pytest.raises(BackendLoadError, match="/no/such/device"):
        registry.load_backend("good")
    assert [check.id for check in doctor_checks(registry)] == ["good.check"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise SystemExit(2)", "raised SystemExit: 2"),
        ("raise ValueError('no')", "raised ValueError: no"),
        ("return None", "returned None, not a list of DoctorCheck"),
        ("return ['check']", "returned ['check'], not a list of DoctorCheck"),
    ],
)
def test_a_plugin_whose_checks_fail_is_a_finding_itself(body: str, reason: str, site: Site, registry: Registry):
    hook = f"from kv_core import hookimpl\n@hookimpl\ndef kv_doctor_checks():\n    {body}"
    site.plugin("bad", hook, distribution="kv-bad", version="2")
    site.plugin("good", CHECKS, distribution="kv-checks")
    first, second = doctor_checks(registry)
    assert second.id == "WHO.check"
    (finding,) = first.run()
    assert finding.status is CheckStatus.PROBLEM
    assert f"kv_doctor_checks of plugin 'bad' (kv-bad 2) {reason}" in finding.message
    assert "kv-bad" in finding.remedy

"""What is tested and where: reading a record and a harness, whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.tests.registry.support import Site, backend_text
from kv_conformance.harness import Harness
from kv_conformance.plugin_subject import look_at
from kv_core import BackendNotFound, Capability

HARNESS = """
from kv_conformance import Harness

class Slow(Harness):
    patience_s = 90
    def prerequisites(self):
        return ["no   device"]

class Exits(Harness):
    def __init__(self):
        raise SystemExit("I need a licence")

class Letters(Harness):
    def prerequisites(self):
        return "no device"

class Nothing(Harness):
    def prerequisites(self):
        return None

class Raises(Harness):
    def prerequisites(self):
        raise OSError("no /sys")

class Hurried(Harness):
    patience_s = 0

class Nameless(Harness):
    stand_in = None

class NoHarness:
    pass

instance = Slow()
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(tmp_path)
    one = Site(tmp_path)
    yield one
    one.forget()


def install(site: Site, *harnesses: str) -> None:
    backend = site.module(backend_text("acme", distribution="kv-acme", version="3.1"))
    module = site.module(HARNESS)
    for number, harness in enumerate(harnesses or ("",)):
        own = f"[kv_core.conformance]\nacme = {module}:{harness}\n" if harness else ""
        backends = "" if number else f"[kv_core.backends]\nacme = {backend}\n"
        site.distribution(f"kv-acme{number or ''}", "3.1", raw_entry_points=backends + own)


def test_without_a_harness_the_default_one_serves(site: Site):
    install(site)
    subject = look_at("acme")
    assert type(subject.harness) is Harness
    assert subject.declared == {Capability.WRITE, Capability.EMBEDDED}
    assert (subject.missing, subject.stand_in, subject.slowness) == ((), "", 1.0)
    told = subject.as_dict()
    assert told["info"]["distribution"] == "kv-acme"
    assert told["info"]["capabilities"] == ["embedded", "write"]


def test_an_authors_harness(site: Site):
    install(site, "Slow")
    subject = look_at("acme")
    assert type(subject.harness).__name__ == "Slow"
    assert (subject.missing, subject.slowness) == (("no device",), 3.0)


@pytest.mark.parametrize(
    ("harness", "message"),
    [
        ("Exits", "can't be loaded: SystemExit: I need a licence"),
        ("Letters", "returned 'no device': expected a sequence of sentences"),
        ("Nothing", "returned None: expected a sequence of sentences"),
        ("Raises", "prerequisites() raised OSError: no /sys"),
        ("Hurried", "patience_s=0: expected seconds"),
        ("Nameless", "stand_in=None: expected a text"),
        ("NoHarness", "must name a subclass of kv_conformance.Harness"),
        ("instance", "must name a subclass of kv_conformance.Harness"),
        ("missing", "can't be loaded: AttributeError"),
    ],
)
def test_a_harness_that_can_not_be_used(site: Site, harness: str, message: str):
    install(site, harness)
    subject = look_at("acme")
    assert subject.harness is None
    assert message in subject.harness_error
    assert subject.as_dict()["harness_error"] == subject.harness_error


def test_two_harnesses_for_one_backend(site: Site):
    install(site, "Slow", "Slow")
    subject = look_at("acme")
    assert subject.harness is None
    assert "2 harnesses have the name 'acme': " in subject.harness_error
    assert "kv-acme 3.1 (" in subject.harness_error
    assert "kv-acme1 3.1 (" in subject.harness_error


def test_a_record_that_can_not_be_read(site: Site):
    site.distribution("kv-acme", "1", backends={"acme": site.module("raise ImportError('no libacme')")})
    subject = look_at("acme")
    assert subject.info is None
    assert subject.declared == frozenset()
    assert "BackendLoadError" in subject.info_error
    assert "no libacme" in subject.info_error


def test_a_backend_that_is_not_installed():
    with pytest.raises(BackendNotFound):
        look_at("nobody")

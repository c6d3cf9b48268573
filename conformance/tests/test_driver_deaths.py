"""Checks that take their process with them, and runs that are none: what is known is told, and nothing else."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.tests.driver_support import Stranger, detail_of, outcomes_of, report_in, stranger

DEADLY = '''
    @check("KV-XFER-1")
    def test_before(env):
        """It passes."""

    @check("KV-XFER-2")
    def test_crash(env):
        """It crashes."""
        import subprocess
        child = subprocess.Popen(["sleep", "300"])
        with open("child", "w") as file:
            file.write(str(child.pid))
        os.kill(os.getpid(), signal.SIGSEGV)

    @check("KV-XFER-3")
    def test_exit(env):
        """It ends the process."""
        os._exit(0)

    @check("KV-XFER-4", limit_s=0.5)
    def test_hang(env):
        """It hangs where no signal helps."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(300)

    @check("KV-XFER-5")
    def test_leaves(env):
        """It ends the run."""
        pytest.exit("enough", returncode=0)

    @check("KV-XFER-6")
    def test_after(env):
        """It passes."""
'''
QUIET = '''
    @check("KV-XFER-1")
    def test_needs_the_engine(env):
        """It passes."""

    @check("KV-XFER-2", engine=False, gate=False)
    def test_needs_no_engine(env):
        """It passes too."""

    @check("KV-CAP-1", requires=Capability.READ)
    def test_refused(env):
        """It is refused."""
        raise NotSupported("reading", "read")

    @check("KV-CAP-2", requires=Capability.WRITE)
    def test_declared(env):
        """It works."""

    @check("KV-CAP-3", requires=Capability.EMBEDDED)
    def test_embedded(env):
        """It works."""
'''
ALL = ("KV-XFER-1", "KV-XFER-2", "KV-CAP-1", "KV-CAP-2", "KV-CAP-3")


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    one = stranger(tmp_path_factory.mktemp("stranger"))
    one.suite("kv_suite_deadly", test_deadly=DEADLY)
    one.suite("kv_suite_quiet", test_quiet=QUIET)
    return one


def state_of(pid: int) -> str:
    """As the kernel has it: X if there is no such process, Z if it has ended and nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    child = tmp_path / "child"
    if child.exists():
        # Whatever the test was about: what a check has started must be gone with its process.
        assert state_of(int(child.read_text())) in "ZX", "a process of a check outlived it"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_check_in_which_the_process_dies_has_failed_and_the_others_go_on(author: Stranger, home: Path, workers: str):
    done = author.conformance(
        "good", "kv_suite_deadly", "--report", "out", "--kv-grace", "1.5", "--", "-n", workers, cwd=home
    )
    report = report_in(home / "out")
    assert outcomes_of(report) == {
        "KV-XFER-1": "passed", "KV-XFER-2": "failed", "KV-XFER-3": "failed", "KV-XFER-4": "failed", "KV-XFER-5": "failed",
        "KV-XFER-6": "passed",
    }, done.stdout + done.stderr  # fmt: skip
    assert done.returncode == 1
    assert "the process hung in this check" in detail_of(report, "KV-XFER-4")
    if workers == "0":
        assert detail_of(report, "KV-XFER-2") == "the process died (signal 11, SIGSEGV) in this check"
        assert detail_of(report, "KV-XFER-3") == "the process died (exit status 0) in this check"
        hung = next(check for check in report["checks"] if check["id"] == "KV-XFER-4")
        assert "test_hang" in hung["longrepr"], "where it stood is kept"
    else:
        assert "the process died in this check" in detail_of(report, "KV-XFER-2")


def test_missing_prerequisites_make_untestable(author: Stranger, home: Path):
    done = author.conformance("bare", "kv_suite_quiet", "--report", "out", cwd=home)
    report = report_in(home / "out")
    assert outcomes_of(report) == dict(zip(ALL, ["untestable", "passed", *["untestable"] * 3], strict=True))
    assert done.returncode == 3, done.stdout
    assert report["missing"] == ["no RDMA device (ibv_devinfo is empty)"]
    assert detail_of(report, "KV-XFER-1") == "missing here: no RDMA device (ibv_devinfo is empty)"
    assert report["not_verified"] == ["KV-XFER-1", "KV-CAP-1", "KV-CAP-2", "KV-CAP-3"]


def test_a_stand_in_proves_nothing(author: Stranger, home: Path):
    done = author.conformance("standin", "kv_suite_quiet", "--accept", "partial", "--json", cwd=home)
    report = json.loads(done.stdout)
    assert outcomes_of(report) == dict(zip(ALL, ["untestable", "passed", *["untestable"] * 3], strict=True))
    assert done.returncode == 0
    assert (report["verdict"], report["proven"], report["refused"]) == ("partial", [], [])
    assert detail_of(report, "KV-XFER-1").startswith("passed against a stand-in over TCP; missing here: no RDMA")
    assert detail_of(report, "KV-CAP-1").startswith("refused by a stand-in over TCP")


def test_conformant(author: Stranger, home: Path):
    done = author.conformance("good", "kv_suite_quiet", cwd=home)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("CONFORMANT: good (kv-subject 2.5)")
    assert list(home.iterdir()) == [], "without --report nothing is left"


def test_a_broken_harness_means_that_nothing_is_known(author: Stranger, home: Path):
    done = author.conformance("broken", "kv_suite_quiet", "--report", "out", cwd=home)
    report = report_in(home / "out")
    assert set(outcomes_of(report).values()) == {"harness_error"}
    assert (done.returncode, report["verdict"]) == (4, "unknown")
    assert "RuntimeError: no licence" in detail_of(report, "KV-XFER-1")


def test_a_record_that_cannot_be_read_fails_what_depends_on_it(author: Stranger, home: Path):
    done = author.conformance("unreadable", "kv_suite_quiet", "--report", "out", cwd=home)
    report = report_in(home / "out")
    assert outcomes_of(report) == dict(zip(ALL, ["passed", "passed", "failed", "failed", "failed"], strict=True))
    assert "libacme.so.3 is missing" in detail_of(report, "KV-CAP-1")
    assert (report["claimed"], done.returncode) == ([], 1)


def test_what_is_left_out_is_told(author: Stranger, home: Path):
    done = author.conformance("good", "kv_suite_quiet", "--gate", "--only", "KV-XFER", "--report", "out", cwd=home)
    report = report_in(home / "out")
    assert outcomes_of(report) == dict(zip(ALL, ["passed", *["not_run"] * 4], strict=True))
    assert detail_of(report, "KV-XFER-2") == "left out by --gate: it is no part of the short run"
    assert detail_of(report, "KV-CAP-1") == "left out by --only"
    assert done.returncode == 3


def test_a_check_that_pytest_leaves_out_means_that_nothing_is_known(author: Stranger, home: Path):
    done = author.conformance("good", "kv_suite_quiet", "--report", "out", "--", "-k", "refused", cwd=home)
    report = report_in(home / "out")
    assert (done.returncode, report["verdict"]) == (4, "unknown")
    assert outcomes_of(report)["KV-CAP-1"] == "refused"
    assert "without an outcome (4): KV-XFER-1, KV-XFER-2, KV-CAP-2, KV-CAP-3" in report["reasons"]


def test_an_old_report_is_never_taken_for_a_new_one(author: Stranger, home: Path):
    """Pytest does not even start: what an earlier run has left in the folder must not speak for this one."""
    out = home / "out"
    out.mkdir()
    for name in ("report.json", "report.md", "junit.xml", "results-1234.jsonl"):
        (out / name).write_text('{"verdict": "conformant"}')
    done = author.conformance("good", "kv_suite_quiet", "--report", "out", "--", "--no-such-option", cwd=home)
    report = report_in(out)
    assert (done.returncode, report["verdict"]) == (4, "unknown")
    assert any("unrecognized arguments: --no-such-option" in reason for reason in report["reasons"]), report["reasons"]
    assert not (out / "results-1234.jsonl").exists()
    assert "conformant" not in (out / "report.md").read_text().lower()


def test_results_of_another_run_are_refused(author: Stranger, home: Path):
    """Somebody else writes into the results file, here by giving pytest another run's id."""
    done = author.conformance("good", "kv_suite_quiet", "--report", "out", "--", "--kv-run-id=other", cwd=home)
    report = report_in(home / "out")
    assert (done.returncode, report["verdict"]) == (4, "unknown")
    assert any("has a record of run 'other', expected run" in reason for reason in report["reasons"])
    assert set(outcomes_of(report).values()) == {"not_run"}


def test_checks_that_run_twice_prove_nothing(author: Stranger, home: Path):
    """As with a plugin that repeats what failed until it passes."""
    (home / "conftest.py").write_text(
        "from _pytest.runner import runtestprotocol\n"
        "def pytest_runtest_protocol(item, nextitem):\n"
        "    runtestprotocol(item, nextitem=item)\n"
        "    return None\n"
    )
    done = author.conformance("good", "kv_suite_quiet", "--report", "out", cwd=home)
    report = report_in(home / "out")
    assert (done.returncode, report["verdict"]) == (4, "unknown")
    assert "ran more than once (passed, then " in detail_of(report, "KV-XFER-1")


def test_told_to_end_the_driver_ends_pytest_too(author: Stranger, home: Path):
    author.suite(
        "kv_suite_endless",
        test_a='''
        @check("KV-XFER-1")
        def test_endless(env):
            """It goes on."""
            with open("child", "w") as file:
                file.write(str(os.getpid()))
            time.sleep(300)
        ''',
    )
    driver = author.start("-m", "kv_conformance", "good", "--kv-suite", "kv_suite_endless", cwd=home)
    try:
        while not (home / "child").exists() or not (home / "child").read_text():
            assert driver.poll() is None
            time.sleep(0.02)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(60) == 4
    finally:
        driver.kill()
        driver.wait()


def test_a_suite_with_a_mistake_is_refused_by_pytest_too(author: Stranger):
    author.suite(
        "kv_suite_wrong",
        test_a='@check("KV-XFER-1")\ndef test_one(env):\n    """One."""\n',
        test_b='@check("KV-XFER-1")\ndef test_two(env):\n    """Two."""\n',
    )
    author.suite("kv_suite_nameless", test_a="def test_one(env):\n    pass\n")
    command = ("-m", "pytest", "-p", "kv_conformance", "--kv-backend=good", "-n", "0", "--pyargs")
    twice = author.call(*command, "kv_suite_wrong", "--kv-suite=kv_suite_wrong")
    assert twice.returncode == 4
    assert "KV-XFER-1 is given twice" in twice.stderr
    nameless = author.call(*command, "kv_suite_nameless", "--kv-suite=kv_suite_nameless")
    assert nameless.returncode == 4
    assert "is no check: give it an id with @check" in nameless.stderr
    unknown = author.call(*command, "kv_suite_quiet", "--kv-backend=nobody")
    assert unknown.returncode == 4
    assert "no backend named 'nobody' is installed" in unknown.stderr


def test_without_the_option_nothing_happens(author: Stranger, home: Path):
    """The plugin is part of every run of pytest where it is installed."""
    (home / "test_own.py").write_text(
        "import pytest, sys\n"
        "def test_own(request, pytestconfig):\n"
        "    assert not pytestconfig.pluginmanager.has_plugin('kv_conformance_conduct')\n"
        "    assert pytestconfig.pluginmanager.has_plugin('kv_conformance')\n"
        "    assert 'kv_conformance.plugin_conduct' not in sys.modules\n"
        "    with pytest.raises(pytest.FixtureLookupError):\n"
        "        request.getfixturevalue('env')\n"
    )
    done = author.call("-m", "pytest", "-q", "-n", "0", cwd=home)
    assert done.returncode == 0, done.stdout

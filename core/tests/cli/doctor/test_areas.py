"""The pure parts on facts that this machine does not have: RDMA devices and GPUs, peers elsewhere, drivers that are too old."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from kv_core.cli.doctor import addresses, devices, host, installed, limits, live, peer
from kv_core.cli.doctor.addresses import Addresses
from kv_core.cli.doctor.catalog import all_kinds
from kv_core.cli.doctor.facts.configured import look_at_addresses
from kv_core.cli.doctor.facts.devices import look_for_devices
from kv_core.cli.doctor.facts.distributions import Wheel
from kv_core.cli.doctor.facts.limits import Limits
from kv_core.cli.doctor.facts.network import Bound, Name, own_address_towards, resolve, try_bind
from kv_core.cli.doctor.facts.peer import PeerFacts
from kv_core.cli.doctor.facts.process import ProcessFacts, look_at_processes
from kv_core.cli.doctor.jobs import Layout, LayoutBuffer, MachineSeen, Moved, PluginLoaded, Serving, Trouble
from kv_core.cli.doctor.processes import Outcome
from kv_core.cli.doctor.settings import DoctorSettings
from kv_core.contract.memory import Buffer, KVArgs, Pool
from kv_core.contract.records import CheckStatus, DoctorFinding
from kv_core.registry import PluginReport, PluginStatus
from kv_core.runtime.bootstrap.routes import HealthReport, RankHealth, RouteInfo

ID = re.compile(r"[a-z]+\.[a-z]+(-[a-z]+)*")


def ids(found: object) -> list[str]:
    return [finding.id for finding in found]  # type: ignore[attr-defined]


def test_the_catalogue_has_each_kind_once_and_what_is_wrong_has_a_remedy():
    kinds = [kind for area in all_kinds().values() for kind in area]
    assert len(kinds) > 60
    assert [name for name, count in Counter(kind.id for kind in kinds).items() if count > 1] == []
    for kind in kinds:
        assert ID.fullmatch(kind.id), kind.id
        assert kind.remedy or kind.status is CheckStatus.OK, f"{kind.id} does not say what to do"


# -- devices -----------------------------------------------------------------------------------------------------------


def sysfs(
    root: Path, name: str, state: str = "4: ACTIVE", gid: str = "fe80:0000:0000:0000:0000:0000:0000:0001"
) -> None:
    port = root / name / "ports" / "1"
    (port / "gids").mkdir(parents=True)
    (port / "state").write_text(f"{state}\n")
    (port / "link_layer").write_text("InfiniBand\n")
    (port / "gids" / "0").write_text(f"{gid}\n")
    (port / "gids" / "1").write_text("0000:0000:0000:0000:0000:0000:0000:0000\n")


def test_a_layout_leaves_out_what_an_engine_may_leave_out():
    pool = Pool("kv", (Buffer(4096, 16, 1, 0),))
    args, layout = KVArgs(kv=pool), Layout(kv=(LayoutBuffer(16, 0),))
    for name in ("page_size", "dtype", "kv_layout", "model", "revision", "num_kv_heads", "head_dim", "extra"):
        assert getattr(layout, name) == getattr(args, name), name


def test_rdma_devices(tmp_path: Path):
    rdma, verbs = tmp_path / "infiniband", tmp_path / "verbs"
    machine = MachineSeen({devices.VERBS_LIBRARY: ""})
    assert "rdma.none" in ids(devices.devices(look_for_devices(rdma, verbs), machine))
    sysfs(rdma, "mlx5_0")
    seen = look_for_devices(rdma, verbs)
    assert seen.rdma
    found = ids(devices.devices(seen, machine))
    assert found[0] == "rdma.port"
    assert "rdma.no-device-file" in found
    verbs.mkdir()
    (verbs / "uverbs0").touch()
    sysfs(rdma, "mlx5_1", state="1: DOWN")
    sysfs(rdma, "mlx5_2", gid="0000:0000:0000:0000:0000:0000:0000:0000")
    (rdma / "mlx5_3").mkdir()
    missing = MachineSeen({devices.VERBS_LIBRARY: "libibverbs.so.1: cannot open shared object file"})
    found = ids(devices.devices(look_for_devices(rdma, verbs), missing))
    for finding in ("rdma.port", "rdma.port-down", "rdma.no-gid", "rdma.no-port", "rdma.no-library"):
        assert finding in found
    assert "rdma.no-device-file" not in found


def test_gpus(tmp_path: Path):
    (tmp_path / "nvidia0").touch()
    seen = look_for_devices(tmp_path / "none", tmp_path / "none", tmp_path, tmp_path / "kfd")
    assert seen.nvidia == ("nvidia0",)
    assert "gpu.cuda-driver" in ids(devices.devices(seen, MachineSeen({}, cuda_error="libcuda.so.1: cannot open")))
    assert "gpu.cuda" in ids(devices.devices(seen, MachineSeen({}, 12_040, 1)))
    (tmp_path / "kfd").touch()
    assert "gpu.rocm" in ids(
        devices.devices(look_for_devices(dev=tmp_path / "x", kfd=tmp_path / "kfd"), MachineSeen({}))
    )


def test_locked_memory_is_a_problem_where_a_device_locks_it():
    low = Limits(8 << 20, False, None, None, Path("/dev/shm"), 1 << 30, 1 << 30)
    for rdma, status in ((True, CheckStatus.PROBLEM), (False, CheckStatus.WARNING)):
        (finding,) = [each for each in limits.limits(low, rdma=rdma) if "memlock" in each.id]
        assert (finding.id, finding.status) == ("limits.memlock-low", status)


def test_a_wheel_for_a_newer_cuda_than_the_driver_runs():
    wheels = [Wheel(name, "1.0", {}, (), frozenset({"acme"})) for name in ("acme-cu12", "acme-cuda13", "acme-cuxx")]
    found = list(installed.wheels(wheels, MachineSeen({}, 12_040, 1), "acme"))
    assert ids(found) == ["packages.cuda"]
    assert "acme-cuda13 1.0 is built for CUDA 13" in found[0].message
    assert "runs CUDA 12.4 at most" in found[0].message
    assert not list(installed.wheels(wheels, MachineSeen({}, 13_000, 1), "acme"))
    assert not list(installed.wheels(wheels, MachineSeen({}), "acme")), "without a driver nobody can tell"


def test_a_clash_is_a_problem_for_the_backend_that_wants_both():
    first, second = (
        Wheel(name, "1", {"/site/engine/core.so": name}, (), frozenset({"acme"})) for name in ("engine", "engine-cpu")
    )
    for asked, status in (("acme", CheckStatus.PROBLEM), ("other", CheckStatus.WARNING), (None, CheckStatus.WARNING)):
        (finding,) = installed.wheels([first, second], MachineSeen({}), asked)
        assert (finding.id, finding.status) == ("packages.clash", status)


# -- addresses ---------------------------------------------------------------------------------------------------------


def place(host: str = "127.0.0.1", told: str = "", *, elsewhere: str = "", local: bool = True) -> Addresses:
    name = resolve(told or host)
    loopback = name.addresses[:1] == ("127.0.0.1",)
    return Addresses(
        host, name, try_bind(host, 0), (told or host) == "0.0.0.0", local, loopback, elsewhere, "10.0.0.5", ()
    )


def test_loopback_is_told_to_a_peer_that_is_another_machine():
    (finding,) = addresses.addresses(place(elsewhere="10.0.0.9"))
    assert (finding.id, finding.status) == ("address.loopback", CheckStatus.PROBLEM)
    assert "10.0.0.5" in finding.remedy
    assert ids(addresses.addresses(place())) == ["address.good"]


def test_with_a_peer_elsewhere_the_address_towards_it_is_taken():
    """198.51.100.0/24 is for documentation: no machine has it. Nothing is sent there."""
    seen = look_at_addresses(DoctorSettings(peer="198.51.100.7:8998"))
    assert seen.elsewhere == "198.51.100.7"
    assert seen.host == (seen.own or "127.0.0.1")
    if seen.own:
        assert "address.good" in ids(addresses.addresses(seen))
    bound = look_at_addresses(DoctorSettings(peer="198.51.100.7:8998", host="127.0.0.1"))
    assert "address.loopback" in ids(addresses.addresses(bound))
    assert look_at_addresses(DoctorSettings(peer="127.0.0.1:8998")).elsewhere == ""


def test_no_backend_and_one_that_nobody_offers():
    assert ids(installed.backends({}, None, [], "python")) == ["backends.none"]
    assert ids(installed.backends({}, "acme", ["other"], "python")) == ["backends.unknown"]


def test_a_backend_that_is_disabled_is_a_problem_if_no_other_one_works():
    reports = {
        name: Outcome([PluginLoaded(PluginReport("g", name, ("kv",), ("1",), "m", status))])
        for name, status in (("off", PluginStatus.DISABLED), ("on", PluginStatus.OK))
    }
    off = {"off": reports["off"]}
    for outcomes, asked, status in (
        (off, None, CheckStatus.PROBLEM), (reports, None, CheckStatus.WARNING), (reports, "off", CheckStatus.PROBLEM),
    ):  # fmt: skip
        found = {finding.id: finding for finding in installed.backends(outcomes, asked, list(outcomes), "python")}
        assert found["backends.disabled"].status is status


def test_other_addresses_that_do_not_work():
    assert ids(addresses.addresses(place("0.0.0.0"))) == ["address.wildcard"]
    assert ids(addresses.addresses(place("192.0.2.1", "127.0.0.1"))) == ["address.unbindable"]
    assert "address.elsewhere" in ids(addresses.addresses(place("127.0.0.1", "192.0.2.1", local=False)))
    assert own_address_towards("127.0.0.1", 9) == "127.0.0.1"
    assert own_address_towards("no-such-host.invalid", 9) == ""


def test_ports_that_nobody_said_are_warnings():
    taken = Bound("127.0.0.1", 8998, 98, "Address already in use", "python3 (pid 7)")
    asked, default = (addresses.Port("The bootstrap port", taken, said) for said in (True, False))
    served = addresses.Port("The bootstrap port", taken, asked=True, served=True)
    facts = Addresses(
        "h", Name("h", ("127.0.0.1",)), Bound("h", 0), False, True, True, "", "", (asked, default, served)
    )
    found = {(finding.id, finding.status) for finding in addresses.addresses(facts) if finding.id.startswith("port")}
    assert found == {
        ("port.taken", CheckStatus.PROBLEM), ("port.taken", CheckStatus.WARNING), ("port.served", CheckStatus.OK),
    }  # fmt: skip


# -- this host ---------------------------------------------------------------------------------------------------------


def test_what_processes_may_do_to_each_other():
    here = look_at_processes()
    assert set(ids(host.host(here))) & {"host.copies", "host.copies-denied"}
    denied = ProcessFacts("Operation not permitted", "1", "", False, 0.005)
    assert ids(host.host(denied)) == ["host.copies-denied", "host.no-proof", "host.switch-interval"]
    assert "ptrace_scope is 1" in next(iter(host.host(denied))).message


# -- transfers ---------------------------------------------------------------------------------------------------------

ROOM = Moved(1 << 20, 0, 0.5, 0.25, "tcp")
SERVING = Serving("127.0.0.1:9")


def test_tcp_is_a_warning_where_something_faster_is_there():
    prefill, decode = Outcome([SERVING, ROOM]), Outcome([ROOM])
    found = list(live.loopback("acme", prefill, decode, better="RDMA devices (mlx5_0)"))
    assert ids(found) == ["live.moved", "fabric.tcp-fallback"]
    assert "mlx5_0" in found[1].message
    assert ids(live.loopback("acme", prefill, decode, better="")) == ["live.moved"]


@pytest.mark.parametrize(
    ("prefill", "decode", "expected"),
    [
        (Outcome([], "was killed by SIGSEGV"), None, ["live.crashed"]),
        (Outcome([], "did not end in time and was killed", hung=True), None, ["live.hung"]),
        (Outcome([Trouble("start", "TransportError", "no device")]), None, ["live.not-started"]),
        (Outcome([]), None, ["live.hung"]),
        (Outcome([SERVING]), Outcome([], "was killed by SIGABRT"), ["live.crashed"]),
        (Outcome([SERVING]), Outcome([Trouble("start", "InvalidConfig", "so")]), ["live.not-started"]),
        (Outcome([SERVING]), Outcome([]), ["live.hung"]),
    ],
)
def test_children_that_come_to_grief(prefill: Outcome, decode: Outcome | None, expected: list[str]):
    assert ids(live.loopback("acme", prefill, decode, better="")) == expected


def test_a_rank_of_the_peer_that_stands_still():
    ranks = [RankHealth((0, 0, 0, 0), "i", 0.5, 9.0), RankHealth((1, 0, 0, 0), "j", 0.5, 0.5)]
    route = RouteInfo("s", (2, 1, 1, 1), 16, "bf16", "NHD", "acme", 1, {})
    found: list[DoctorFinding] = list(
        peer.reached(PeerFacts("h:1", health=HealthReport("ok", "s", True, ranks), route=route))
    )
    assert ids(found) == ["peer.well", "peer.rank-stalled"]
    assert "(0, 0, 0, 0)" in found[1].message

"""KV-ID: what a backend says of itself, and what it brings along. Read without its engine, but for the last check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.process import Process
from kv_conformance.suite.in_node_identity import (
    Reader,
    canonical,
    import_alone,
    known_options,
    record_of,
    source_of,
)
from kv_core import (
    KV_CORE_API,
    BackendInfo,
    BackendRecord,
    BaseKVManager,
    BaseKVReceiver,
    BaseKVSender,
    IncompatibleBackend,
    Role,
    ThreadingModel,
    list_backends,
)
from kv_core.contract.transport import Transport
from kv_core.registry import StrictPluginManager, read_record
from kv_core.registry.errors import Fault as PluginFault
from kv_core.registry.errors import PluginError
from kv_core.registry.signatures import check_class

UNKNOWN = "no_backend_has_this_option"


@check("KV-ID-1", engine=False)
def test_it_is_found_by_its_name(env: Env) -> None:
    """A backend is found by its entry point in the group ``kv_core.backends``, and exactly one installed distribution offers
    its name.

    If this fails, look at ``[project.entry-points."kv_core.backends"]`` in pyproject.toml, install the distribution again
    (an editable one, too: its metadata is made when it is installed), and uninstall what offers the same name.
    """
    found = [backend for backend in list_backends() if backend.name == env.backend]
    assert found, f"no distribution offers {env.backend!r}; there are {[backend.name for backend in list_backends()]}"
    (one,) = found
    owners = [f"{name} {version}" for name, version in zip(one.distributions, one.versions, strict=True)]
    assert len(owners) == 1, (
        f"{len(owners)} entry points have the name {env.backend!r}: {', '.join(owners)} ({one.value})"
    )
    assert not one.disabled, f"KV_CORE_DISABLED_PLUGINS names {env.backend!r}"


@check("KV-ID-2", engine=False)
def test_it_says_who_it_is(env: Env) -> None:
    """The record's name is the entry point's; its distribution and version are those of the installed distribution.

    If this fails, look at the BackendInfo in kv_backend(): take the version from importlib.metadata.version().
    """
    info, source = record_of(env.backend).info, source_of(env.backend)
    assert info.name == source.name, f"info.name is {info.name!r}, and the entry point has the name {source.name!r}"
    assert canonical(info.distribution) == canonical(source.distribution), (
        f"info.distribution is {info.distribution!r}, and {source.distribution!r} has the entry point"
    )
    assert info.version == source.version, (
        f"info.version is {info.version!r}, and {source.label} is installed. Is its metadata older than its source? "
        "Then install it again"
    )


@check("KV-ID-3", engine=False)
def test_its_api_version_is_supported(env: Env) -> None:
    """``info.api_version`` is the version of the plugin contract that the backend was built for, (major, minor): of the same
    major as core's KV_CORE_API, and of no newer minor.

    If this fails, look at api_version in kv_backend(): numbers that are written down, not KV_CORE_API of whatever is installed.
    """
    version: object = record_of(env.backend).info.api_version
    assert isinstance(version, tuple), f"info.api_version is {version!r}, expected two numbers (major, minor)"
    assert len(version) == 2, f"info.api_version is {version!r}, expected two numbers (major, minor)"
    assert all(type(part) is int and part >= 0 for part in version), (
        f"info.api_version is {version!r}, expected numbers"
    )
    major, minor = version
    assert major == KV_CORE_API[0], f"built for plugin API {version}, and this core has {KV_CORE_API}: another major"
    assert minor <= KV_CORE_API[1], f"built for plugin API {version}, and this core has {KV_CORE_API}: a newer minor"


@check("KV-ID-4", engine=False)
def test_its_hooks_can_be_called(env: Env) -> None:
    """Each hook of the plugin has kv_core's marker, a name that is a hook's, and its parameters; none is async, a generator or a
    wrapper, and kv_backend() returns a BackendRecord.

    If this fails, look at the functions named ``kv_...`` in the plugin: ``from kv_core import hookimpl``, and
    kv_core/contract/hookspecs.py for their parameters.
    """
    source = source_of(env.backend)
    hooks = StrictPluginManager()
    try:
        hooks.admit(source.load(), source, required=("kv_backend",))
    except PluginError as error:
        raise AssertionError(str(error)) from error
    answer: object = hooks.hook.kv_backend()
    assert isinstance(answer, BackendRecord), f"kv_backend() returned {answer!r}, expected a BackendRecord"
    assert isinstance(answer.info, BackendInfo), f"record.info is {answer.info!r}, expected a BackendInfo"


@check("KV-ID-5", engine=False)
def test_its_transport_fits_the_contract(env: Env) -> None:
    """The record's transport is a concrete class derived from ``Transport``: every method is there with the contract's parameters
    (further ones have defaults), none is async, and it declares its threading model.

    If this fails, look at the class that the message names, beside kv_core/contract/transport.py.
    """
    kind = record_of(env.backend).transport
    with _explained():
        check_class(kind, Transport, role="transport", constructor=True)
    model: object = kind.threading
    assert isinstance(model, ThreadingModel), f"{kind.__qualname__}.threading is {model!r}, expected a ThreadingModel"


@check("KV-ID-6", engine=False)
def test_its_own_manager_fits_the_contract(env: Env) -> None:
    """A manager class that the record brings is a concrete ``BaseKVManager`` with every method of it and its parameters.

    If this fails, look at the class that the message names, beside kv_core/contract/interfaces.py. Derive it from
    CommonKVManager, and override what is different.
    """
    own = record_of(env.backend).manager
    if own is not None:
        with _explained():
            check_class(own, BaseKVManager, role="manager")


@check("KV-ID-7", engine=False)
def test_its_own_sender_and_receiver_fit_the_contract(env: Env) -> None:
    """Sender and receiver classes that the record brings are concrete ``BaseKVSender`` and ``BaseKVReceiver``: poll,
    get_transfer_metric, abort, clear and all others are there, with the contract's parameters.

    If this fails, look at the class that the message names, beside kv_core/contract/interfaces.py. Derive it from
    CommonKVSender or CommonKVReceiver, and override what is different.
    """
    record = record_of(env.backend)
    with _explained():
        if record.sender is not None:
            check_class(record.sender, BaseKVSender, role="sender")
        if record.receiver is not None:
            check_class(record.receiver, BaseKVReceiver, role="receiver")


@check("KV-ID-8", engine=False)
def test_core_takes_its_record(env: Env) -> None:
    """Core takes what the plugin brings: every rule for records and hooks holds, those of the checks above among them.

    If this fails, look at the message: it names what is wrong, and the mend.
    """
    try:
        record = read_record(env.backend)
    except IncompatibleBackend as error:
        raise AssertionError(str(error)) from error
    assert record.info.description.strip(), "info.description is empty: `kv-core backends` shows it"


@check("KV-ID-9", engine=False)
def test_importing_it_loads_nothing(env: Env) -> None:
    """Importing the plugin and calling kv_backend() loads no native library beyond Python's own and those that core has loaded,
    imports no torch, starts no thread, opens no socket and writes nothing to standard output or error.

    If this fails, look at the imports at the top of the plugin's modules: the engine's belongs into the transport's constructor
    and into preflight().
    """
    source = source_of(env.backend)
    seen = import_alone(source.name, source.value, source.group, env.patience_s)
    torch = sorted(name for name in seen.modules if name.partition(".")[0] == "torch")[:3]
    assert not torch, f"importing {source.value} imports torch"
    assert not seen.libraries, f"importing {source.value} loads native libraries: {', '.join(seen.libraries)}"
    assert not seen.threads, f"importing {source.value} starts threads: {', '.join(seen.threads)}"
    assert not seen.sockets, f"importing {source.value} opens {seen.sockets} sockets"
    assert not seen.stdout, f"importing {source.value} writes to standard output: {seen.stdout[:500]!r}"
    assert not seen.stderr, f"importing {source.value} writes to standard error: {seen.stderr[:500]!r}"


@check("KV-ID-10", engine=False)
def test_it_says_the_same_each_time(env: Env) -> None:
    """Each call of kv_backend() gives the same description, in this process and in another one; it survives pickling.

    If this fails, look at what the BackendInfo is made of: nothing that depends on the process, on the time or on what was loaded.
    """
    info = record_of(env.backend).info
    assert record_of(env.backend).info == info, (
        f"kv_backend() says {record_of(env.backend).info}, and said {info} before"
    )
    with _reader(env) as process:
        other: BackendInfo = process.ask("info")
        assert process.ask("same", info), f"in another process it is {other}, here {info}"
    assert other == info, f"what came back from another process is {other}, here it is {info}"


@check("KV-ID-11", engine=False)
def test_an_option_that_it_does_not_have_is_refused(env: Env) -> None:
    """An option that the backend does not have is refused by the transport's constructor with ``InvalidConfig``, which names that
    option and those that there are, before the engine is loaded.

    If this fails, look at the constructor of the transport: kv_core.parse_options() does it.
    """
    known = known_options(
        env.harness.setting(role, fault) for role in Role for fault in (None, Fault.HOLD_DATA, Fault.REGISTRATION)
    )
    with _reader(env) as process:
        raised, message = process.ask("construct", {UNKNOWN: 1}, limit_s=env.patience_s)
    assert raised, f"the option {UNKNOWN!r} was taken: a misspelt option has no effect and nobody is told"
    assert raised == "InvalidConfig", f"expected InvalidConfig for the option {UNKNOWN!r}, seen {raised}: {message}"
    assert UNKNOWN in message, f"the message does not name the option {UNKNOWN!r}: {message}"
    unnamed = [name for name in known if name not in message]
    assert not unnamed, f"the message does not name what there is, {', '.join(unnamed)}: {message}"


@check("KV-ID-12")
def test_it_loads_here(env: Env) -> None:
    """Where its prerequisites are there, the backend loads with its engine; loaded again it is the same one, and it says of itself
    what it said without its engine.

    If this fails, look at the message, which is the engine's own: what is missing belongs into the harness's prerequisites().
    """
    with _reader(env, env.setting(Role.PREFILL).environment) as process:
        info, same = process.ask("load", limit_s=env.patience_s)
    assert same, "load_backend() gave another backend the second time"
    assert info == record_of(env.backend).info, (
        f"loaded it says {info}, and {record_of(env.backend).info} without its engine"
    )


@contextmanager
def _explained() -> Iterator[None]:
    """Core's own words for what is wrong with a class."""
    try:
        yield
    except PluginFault as fault:
        raise AssertionError(str(fault)) from fault


@contextmanager
def _reader(env: Env, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    process = Process("reader", Reader, (env.backend,), environment or {}, env.patience_s)
    try:
        process.started()
        yield process
    finally:
        process.end()

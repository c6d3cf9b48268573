"""What ``kv_backend()`` returned is checked whole when the backend is loaded: API version, description, signatures."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from core.tests.registry.support import Site
from kv_core import KV_CORE_API, IncompatibleBackend
from kv_core.registry import Registry
from kv_core.registry.hints import kv_core_version

PIECES = """
from kv_core import KVPoll, KVTransferMetric
from kv_core.contract.interfaces import BaseKVManager, BaseKVReceiver, BaseKVSender


class GoodSender(BaseKVSender):
    room = 1
    decode_prefix_len = 0
    def poll(self): return KVPoll.Failed
    def get_transfer_metric(self): return KVTransferMetric()
    def failure(self): return None
    def abort(self, reason=""): ...
    def is_release_safe(self): return True
    def clear(self): ...
    def init(self, num_kv_indices, aux_index=None): ...
    def send(self, kv_indices, *, state_indices=None, layers=None, ready=None): ...


class GoodReceiver(BaseKVReceiver):
    @property
    def room(self): return 1
    def poll(self): return KVPoll.Failed
    def get_transfer_metric(self): return KVTransferMetric()
    def failure(self): return None
    def abort(self, reason="", *, quietly=False): ...
    def is_release_safe(self): return True
    def clear(self): ...
    def init(self, prefill_dp_rank=0): ...
    def send_metadata(
        self, kv_indices, *, aux_index=None, state_indices=None, decode_prefix_len=0, extra=None, **more
    ): ...


class GoodManager(BaseKVManager):
    def __init__(self, anything, *, at="all"): ...
    def create_sender(self, bootstrap_addr, bootstrap_room, *, traceparent=None): return GoodSender()
    def create_receiver(self, bootstrap_addr, bootstrap_room, *, traceparent=None): return GoodReceiver()
    def snapshot(self): return {}
    def health(self): return {}
    def close(self): ...


RECORD.update(manager=GoodManager, sender=GoodSender, receiver=GoodReceiver)
"""


@dataclass
class Wrong:
    """A change to a good backend, and what the refusal says."""

    id: str
    change: str
    reason: str
    mend: str


def transport(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"class Bad(GoodTransport):\n{lines}\nRECORD['transport'] = Bad"


WRONG = (
    Wrong(
        "older major", "INFO['api_version'] = (0, 9)", "kv-bad 3.1 was built for plugin API 0.9, and", "Upgrade kv-bad"
    ),
    Wrong("newer major", "INFO['api_version'] = (2, 0)", "plugin API 2.0, and kv-core", "Upgrade kv-core, or install"),
    Wrong(
        "newer minor",
        f"INFO['api_version'] = (1, {KV_CORE_API[1] + 1})",
        f"and kv-core {kv_core_version()} has {KV_CORE_API[0]}.{KV_CORE_API[1]}",
        "Upgrade kv-core, or install an older kv-bad",
    ),
    Wrong("API is text", "INFO['api_version'] = '1.0'", "info.api_version is '1.0'", "such as (1, 0)"),
    Wrong("API of three", "INFO['api_version'] = (1, 0, 0)", "info.api_version is (1, 0, 0)", "KV_CORE_API"),
    Wrong("API of booleans", "INFO['api_version'] = (True, False)", "info.api_version is (True, False)", "KV_CORE_API"),
    Wrong("name differs", "INFO['name'] = 'other'", "info.name is 'other', and its entry point is named 'bad'", "same"),
    Wrong("empty name", "INFO['name'] = ''", "info.name is '', must be a non-empty string", "Fill in name"),
    Wrong("version is no text", "INFO['version'] = 3.1", "info.version is 3.1", "Fill in version"),
    Wrong("distribution is None", "INFO['distribution'] = None", "info.distribution is None", "Fill in distribution"),
    Wrong("description is None", "INFO['description'] = None", "info.description is None", "Fill in description"),
    Wrong(
        "moves nothing",
        "INFO['capabilities'] = {Capability.AUX}",
        "info.capabilities (aux) has neither WRITE nor READ",
        "Declare Capability.WRITE",
    ),
    Wrong(
        "info is a dict",
        "BackendRecord = lambda info, **r: __import__('kv_core').BackendRecord(info=INFO, **r)",
        "record.info is dict",
        "kv_core.BackendInfo",
    ),
    Wrong("record is a dict", "BackendRecord = dict", "kv_backend() returned dict", "Return kv_core.BackendRecord("),
    Wrong("record is None", "BackendRecord = lambda **_: None", "kv_backend() returned None", "BackendRecord(info="),
    Wrong(
        "transport is no class",
        "RECORD['transport'] = object()",
        "record.transport is <object object",
        "Put the class itself into the record: a subclass of Transport",
    ),
    Wrong("transport is a stranger", "RECORD['transport'] = dict", "class builtins.dict, which is no sub", "Derive it"),
    Wrong(
        "transport lacks methods",
        "class Bad(Transport):\n    pass\nRECORD['transport'] = Bad",
        "Bad does not implement add_peer(), close(), deregister_memory(), describe(), local_descriptor(), prepare(), "
        "progress(), register_memory(), release(), remove_peer(), submit(), wait(), wake() of Transport",
        "Implement them as kv_core.contract.transport describes",
    ),
    Wrong(
        "transport's threading is text",
        transport("threading = 'owner'"),
        "Bad.threading is 'owner', not a ThreadingModel",
        "ThreadingModel.OWNER",
    ),
    *(
        Wrong(
            f"{name} declared and not implemented",
            f"INFO['capabilities'] |= {{Capability.{name}}}",
            f"info.capabilities declares {name}, and class kv_plugin",
            f"Implement {name.lower()}() or take Capability.{name} away",
        )
        for name in ("CANCEL", "FENCE", "PROBE")
    ),
    Wrong(
        "parameter renamed",
        transport("def submit(self, prepared, work): ..."),
        "Bad.submit(self, prepared, work) is not compatible with the contract's submit(self, prepared, batch): "
        "parameter 'batch' is missing",
        "Write `def submit(self, prepared, batch)`",
    ),
    Wrong(
        "parameter removed", transport("def submit(self, prepared): ..."), "'batch' is missing", "def submit(self, p"
    ),
    Wrong(
        "parameters swapped",
        transport("def submit(self, batch, prepared): ..."),
        "the positional parameters begin with batch, prepared",
        "def submit(self, prepared, batch)",
    ),
    Wrong(
        "parameter put in between",
        transport("def submit(self, prepared, extra=1, batch=None): ..."),
        "the positional parameters begin with prepared, extra",
        "with any further parameters after those",
    ),
    Wrong(
        "further parameter without default",
        transport("def wait(self, timeout_s, peers): ..."),
        "parameter 'peers' has no default, and the contract's callers don't know it",
        "with defaults",
    ),
    Wrong(
        "further keyword without default",
        transport("def wait(self, timeout_s, *, peers): ..."),
        "parameter 'peers' has no default",
        "with defaults",
    ),
    Wrong(
        "variadic", transport("def wait(self, *args, **kwargs): ..."), "'timeout_s' is missing", "def wait(self, tim"
    ),
    Wrong("all variadic", transport("def wait(*args): ..."), "'timeout_s' is missing", "def wait(self, timeout_s)"),
    Wrong(
        "positional-only",
        transport("def wait(self, timeout_s, /): ..."),
        "'timeout_s' is positional-only, must be positional or by keyword",
        "def wait(self, timeout_s)",
    ),
    Wrong(
        "keyword-only",
        transport("def wait(self, *, timeout_s): ..."),
        "'timeout_s' is keyword-only, must be positional or by keyword",
        "def wait(self, timeout_s)",
    ),
    Wrong(
        "optional method with another signature",
        "INFO['capabilities'] |= {Capability.FENCE}\n" + transport("def fence(self): ..."),
        "Bad.fence(self) is not compatible with the contract's fence(self, peer)",
        "def fence(self, peer)",
    ),
    Wrong("async method", transport("async def submit(self, prepared, batch): ..."), "Bad.submit is async", "def inst"),
    Wrong("generator", transport("def close(self):\n    yield"), "Bad.close is a generator", "without yield"),
    Wrong(
        "async generator",
        transport("async def progress(self, transfers):\n    yield"),
        "Bad.progress is async",
        "def instead of async def",
    ),
    Wrong(
        "method is None", transport("close = None"), "Bad.close is None, and Transport has a method", "def close(sel"
    ),
    Wrong(
        "constructor takes more",
        transport("def __init__(self, context, port): ..."),
        "Bad.__init__(self, context, port) is not compatible",
        "def __init__(self, context)",
    ),
    Wrong(
        "static method with another signature",
        transport("@staticmethod\ndef wait(): ..."),
        "'timeout_s' is missing",
        "def wait(self, timeout_s)",
    ),
    *(
        Wrong(
            f"{role} lacks {method}",
            f"{PIECES}\n{_class}\nRECORD['{role}'] = Bad",
            f"Bad does not implement {method}() of Base",
            "Implement it as kv_core.contract.interfaces describes",
        )
        for role, base in (("sender", "GoodSender"), ("receiver", "GoodReceiver"))
        for method in ("get_transfer_metric", "poll", "clear", "abort")
        for _class in (
            f"class Bad({base}):\n    from abc import abstractmethod\n    @abstractmethod\n    def {method}(self): ...",
        )
    ),
    Wrong(
        "sender without a thing",
        PIECES + "\nclass Bad(BaseKVSender): ...\nRECORD['sender'] = Bad",
        "Bad does not implement abort(), clear(), decode_prefix_len, failure(), get_transfer_metric(), init(), "
        "is_release_safe(), poll(), room, send() of BaseKVSender",
        "Implement them",
    ),
    Wrong(
        "manager lacks close",
        PIECES
        + "\nclass Bad(BaseKVManager):\n    def create_sender(self, bootstrap_addr, bootstrap_room, *, traceparent=None): ...\n"
        "    def create_receiver(self, bootstrap_addr, bootstrap_room, *, traceparent=None): ...\n    def health(self): ...\n"
        "    def snapshot(self): ...\nRECORD['manager'] = Bad",
        "Bad does not implement close() of BaseKVManager",
        "Implement it",
    ),
    Wrong(
        "keyword-only given up",
        PIECES + "\nclass Bad(GoodSender):\n"
        "    def send(self, kv_indices, state_indices=None, *, layers=None, ready=None): ...\nRECORD['sender'] = Bad",
        "parameter 'state_indices' is positional or by keyword, must be keyword-only",
        "`def send(self, kv_indices, *, state_indices=None, layers=None, ready=None)`",
    ),
    Wrong(
        "default given up",
        PIECES + "\nclass Bad(GoodSender):\n    def abort(self, reason): ...\nRECORD['sender'] = Bad",
        "parameter 'reason' has no default, and the contract lets callers leave it out",
        "`def abort(self, reason='')`",
    ),
    Wrong(
        "property made a method",
        PIECES + "\nclass Bad(GoodSender):\n    def decode_prefix_len(self): ...\nRECORD['sender'] = Bad",
        "Bad.decode_prefix_len is a method, and BaseKVSender has a property there",
        "Add @property above it",
    ),
    Wrong(
        "receiver is a sender",
        PIECES + "\nRECORD['receiver'] = GoodSender",
        "GoodSender, which is no subclass of BaseKVReceiver",
        "Derive it from BaseKVReceiver",
    ),
    Wrong(
        "manager is an instance", PIECES + "\nRECORD['manager'] = GoodManager(1)", "record.manager is <", "the class it"
    ),
    Wrong(
        "preflight is no function", "RECORD['preflight'] = 'kv_engine'", "record.preflight is str", "def preflight()"
    ),
    Wrong(
        "preflight with a parameter", "RECORD['preflight'] = lambda x: 1", "record.preflight is function", "def pref"
    ),
    Wrong(
        "async preflight",
        "async def preflight(): ...\nRECORD['preflight'] = preflight",
        "record.preflight is function",
        "which imports the engine",
    ),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.id)
def test_a_record_that_core_could_not_use_is_refused_at_load(wrong: Wrong, site: Site, registry: Registry):
    never = "def never():\n    raise AssertionError('preflight of a refused backend')\nRECORD['preflight'] = never\n"
    site.backend("bad", distribution="kv-bad", version="3.1", change=never + wrong.change)
    with pytest.raises(IncompatibleBackend) as caught:
        registry.load_backend("bad")
    message = str(caught.value)
    assert "backend 'bad' of kv-bad 3.1 " in message
    assert wrong.reason in message
    assert wrong.mend in caught.value.hint
    assert message.endswith(caught.value.hint)


GOOD = {
    "all three classes": PIECES,
    "older minor is equal": "INFO['api_version'] = (1, 0)",
    "no description": "INFO['description'] = ''",
    "pull": "INFO['capabilities'] = {Capability.READ}",
    "lazy progress": transport("def progress(self, transfers):\n    yield from ()"),
    "more parameters, with defaults": transport("def wait(self, timeout_s, why='', *more, fast=True, **rest): ..."),
    "required made optional": transport("def wait(self, timeout_s=1.0): ..."),
    "constructor with more": transport("def __init__(self, context, *, port=0): ..."),
    "static and class methods": transport(
        "@staticmethod\ndef wake(): ...\n@classmethod\ndef describe(cls, peer): return ''"
    ),
    "wrapped methods": "import functools\n"
    + transport(
        "def _logged(f):\n    @functools.wraps(f)\n    def inner(*args, **kwargs):\n        return f(*args, **kwargs)\n"
        "    return inner\n@_logged\ndef wait(self, timeout_s): ..."
    ),
    "optional methods implemented": "INFO['capabilities'] |= {Capability.CANCEL, Capability.FENCE, Capability.PROBE}\n"
    + transport("def cancel(self, transfer): ...\ndef fence(self, peer): ...\ndef probe(self, peer): return True"),
    "preflight with defaults": "ran = []\nRECORD['preflight'] = lambda into=ran: into.append(1)",
}


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD.keys())
def test_what_is_compatible_is_taken(change: str, site: Site, registry: Registry):
    site.backend("good", change=change)
    assert registry.load_backend("good").info.name == "good"

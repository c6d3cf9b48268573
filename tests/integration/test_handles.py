"""What a handle says of its room between two steps of the machine."""

from __future__ import annotations

from typing import Any

import pytest

from kv_core import KVPoll, Role
from kv_core.contract.memory import Buffer, KVArgs, Pool
from kv_core.protocol.lifecycle import Phase
from kv_core.protocol.rooms import Room
from kv_core.runtime.handles import CommonKVReceiver, CommonKVSender, HandleChecks

CHECKS = HandleChecks(KVArgs(kv=Pool("kv", (Buffer(4096, 16, 4, 0),))), 8)


@pytest.mark.parametrize(("handle_class", "role"), [(CommonKVSender, Role.PREFILL), (CommonKVReceiver, Role.DECODE)])
def test_pages_are_not_safe_before_the_end_is_shown(handle_class: Any, role: Role):
    room = Room(role, 5, 1, "boot:8998", 0.0)
    handle = handle_class(None, room, CHECKS)
    room.poll = KVPoll.Transferring
    room.enter(Phase.SUCCESS)
    room.release_safe = True
    assert (handle.poll(), handle.is_release_safe()) == (KVPoll.Transferring, False)
    room.publish_end()
    assert (handle.poll(), handle.is_release_safe()) == (KVPoll.Success, True)

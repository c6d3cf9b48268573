"""What the conformance suite is told of this backend is so."""

from __future__ import annotations

import pytest

from kv_conformance import Fault
from kv_core import Region, RegistrationError, Role, TransferConfig
from kv_core.contract.transport import TransportContext
from kv_fake import FakeTransport
from kv_fake.conformance import FakeHarness


def test_the_refused_region_is_the_one_that_it_names():
    harness = FakeHarness()
    setting = harness.setting(Role.DECODE, Fault.REGISTRATION)
    context = TransportContext(Role.DECODE, "me", TransferConfig(options=setting.options))
    transport = FakeTransport(context)
    with pytest.raises(RegistrationError) as caught:
        transport.register_memory([Region(n, 4096 * (n + 1), 4096) for n in range(3)])
    transport.close()
    assert caught.value.region == setting.refused_region
    assert not harness.prerequisites()

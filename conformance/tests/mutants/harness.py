"""The harness of all mutants: kv-fake's faults, and little patience, since many of them hang."""

from __future__ import annotations

from dataclasses import replace

from kv_conformance.harness import Fault, Harness, Setting
from kv_core import Role


class MutantHarness(Harness):
    """See ``Harness``."""

    patience_s = 8.0

    def setting(self, role: Role, fault: Fault | None = None) -> Setting | None:
        """See ``Harness``: the fault script refuses the second region."""
        if fault is Fault.REGISTRATION:
            return Setting({"faults": [{"kind": "fail_registration", "nth": 2}]}, refused_region=1)
        return Setting()


class SettingHarness(MutantHarness):
    """For a backend that can't do without a setting."""

    def setting(self, role: Role, fault: Fault | None = None) -> Setting | None:
        """See ``Harness``."""
        setting = super().setting(role, fault)
        return None if setting is None else replace(setting, options={**setting.options, "device": "acme0"})

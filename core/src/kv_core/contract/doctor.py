"""What a doctor's check may find, written down once: so that the finding and its documentation say the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kv_core.contract.records import CheckStatus, DoctorFinding


@dataclass(frozen=True)
class FindingKind:
    """A finding before its facts are known. ``message`` and ``remedy`` are ``str.format`` templates of named facts.

    ``id`` is stable and never gets another meaning: lower-case words, an area (core's) or the plugin's name first, then a dot.
    ``status`` is the usual one; ``at`` gives another where it depends on what was asked for.
    """

    id: str
    status: CheckStatus
    message: str
    remedy: str = ""

    def at(self, status: CheckStatus) -> FindingKind:
        """The same with another status."""
        return replace(self, status=status)

    def found(self, **facts: object) -> DoctorFinding:
        """The finding. Raises ``KeyError`` for a fact that the templates need and that is not given."""
        return DoctorFinding(self.id, self.status, self.message.format(**facts), self.remedy.format(**facts))


def ok(finding_id: str, message: str, remedy: str = "") -> FindingKind:
    """Something that is as it should be, or only has to be known."""
    return FindingKind(finding_id, CheckStatus.OK, message, remedy)


def warning(finding_id: str, message: str, remedy: str) -> FindingKind:
    """Something that does not keep serving from working."""
    return FindingKind(finding_id, CheckStatus.WARNING, message, remedy)


def problem(finding_id: str, message: str, remedy: str) -> FindingKind:
    """Something with which serving would not work."""
    return FindingKind(finding_id, CheckStatus.PROBLEM, message, remedy)

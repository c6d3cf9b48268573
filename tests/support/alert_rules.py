"""The shipped alert rules on a smaller scale of time."""

from __future__ import annotations

import re
from pathlib import Path

from core.tests.observe.test_monitoring import RULES

FACTOR = 15
"""Rules are written for a Prometheus that scrapes every 15 s. Here it scrapes every second, so that every window and every
``for`` becomes 15 times shorter and holds as many samples as it is meant to hold.
"""
SCRAPE = "1s"
DURATION = re.compile(r"(?<=\[)(\d+)m(?=\])|(?<=for: )(\d+)m\b")


def scaled_rules(text: str, factor: int = FACTOR) -> str:
    """The rules with every window and every ``for`` so many times shorter; nothing else is changed."""

    def shorter(found: re.Match[str]) -> str:
        return f"{int(found.group()[:-1]) * 60 // factor}s"

    return DURATION.sub(shorter, text)


def write_rules(folder: Path) -> Path:
    """A file with the scaled rules."""
    path = folder / "rules.yml"
    path.write_text(scaled_rules(RULES.read_text(encoding="utf-8")), encoding="utf-8")
    return path

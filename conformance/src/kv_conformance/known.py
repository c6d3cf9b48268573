"""The file of known failures: what a backend's author knows to be wrong, by check, each with a reason and a link.

    ["KV-ABORT-2"]
    reason = "the engine cannot cancel a posted write"
    link = "https://example.org/acme/issues/17"
    since = "2026-08-01"        # may be left out

A check that is listed and fails doesn't fail the run; one that is listed and passes does. It lies with the backend, by
custom in ``kv-known-failures.toml``.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_FILE = "kv-known-failures.toml"
_REQUIRED = ("reason", "link")
_FIELDS = (*_REQUIRED, "since")


class KnownFailuresError(ValueError):
    """The file of known failures can't be read, or says something that has no meaning."""


@dataclass(frozen=True)
class KnownFailure:
    """Why a check is known to fail, where that is written about, and since when."""

    reason: str
    link: str
    since: str = ""


def read_known_failures(path: Path) -> dict[str, KnownFailure]:
    """Known failures by check id. Raises ``KnownFailuresError``."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise KnownFailuresError(f"the file of known failures {path} can't be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise KnownFailuresError(f"{path} is no TOML: {error}") from None
    return {check: _entry(path, check, table) for check, table in document.items()}


def refuse_unknown(path: Path, known: Mapping[str, KnownFailure], checks: Collection[str]) -> None:
    """Every entry must be of a check that exists: a misspelt one would hide nothing, and nobody would notice."""
    for check in known:
        if check not in checks:
            match = get_close_matches(check, checks, n=1)
            close = f"Did you mean {match[0]}? " if match else ""
            raise KnownFailuresError(
                f"{path}: there is no check {check!r}. {close}python -m kv_conformance --list shows all; "
                "remove the entry if its check is gone"
            )


def _entry(path: Path, check: str, table: object) -> KnownFailure:
    if not isinstance(table, dict):
        raise KnownFailuresError(
            f'{path}: {check} is {table!r}: expected a table ["{check}"] with {_listed(_REQUIRED)}'
        )
    for name in table:
        if name not in _FIELDS:
            raise KnownFailuresError(f"{path}: {check} has a field {name!r}: expected {_listed(_FIELDS)}")
    for name in _REQUIRED:
        value = table.get(name)
        if not isinstance(value, str) or not value.strip():
            seen = "is missing" if value is None else f"is {value!r}"
            raise KnownFailuresError(
                f"{path}: {name} of {check} {seen}: expected a text, so that others know why it fails"
            )
    since = table.get("since", "")
    # A date written without quotes is one for TOML too.
    return KnownFailure(" ".join(table["reason"].split()), table["link"].strip(), str(since))


def _listed(names: Collection[str]) -> str:
    return ", ".join(names)

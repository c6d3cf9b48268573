"""Requirement sets: which checks a version of the suite scores, and what each of them says.

kv-conformance X.Y scores the set X.Y. A check never changes its meaning under its id, and none disappears: what a set has
once been released with stays true. A check that is in the suite and not in the set runs, is reported, and decides nothing.

    python -m kv_conformance.requirements --write       # after a change of the suite: the set of the coming version
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from kv_conformance.catalog import SUITE, Check, Level, all_checks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "requirements"
_VERSION = re.compile(r"(\d+)\.(\d+)")
_HEAD = """\
# Requirement set {name} of kv-conformance: what a run of its version {name} scores.
# Written by `python -m kv_conformance.requirements --write`; never changed any more once {name}.0 is released.
"""


class RequirementsError(Exception):
    """A requirement set is missing, can't be read, or may not be written."""


@dataclass(frozen=True)
class Requirement:
    """What a set says of one check. ``requires``: a capability's name, or ""."""

    level: Level
    requires: str
    sentence: str


@dataclass(frozen=True)
class RequirementSet:
    """A set with its name, the X.Y of the version that scores it."""

    name: str
    requirements: Mapping[str, Requirement]


def current_name() -> str:
    """X.Y of the installed suite."""
    matched = _VERSION.match(version("kv-conformance"))
    assert matched, "a version begins with two numbers"
    return matched[0]


def read_set(name: str, folder: Path = FOLDER) -> RequirementSet:
    """The set of this name. Raises ``RequirementsError``."""
    path = folder / f"{name}.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        requirements = {
            check: Requirement(Level(table["level"]), table.get("requires", ""), table["sentence"])
            for check, table in document.items()
        }
    except FileNotFoundError:
        raise RequirementsError(
            f"{path} is missing: without it nobody knows what is scored. Reinstall kv-conformance"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequirementsError(f"{path} can't be read: {error!r}. Reinstall kv-conformance") from error
    return RequirementSet(name, requirements)


def set_of(package: str) -> RequirementSet:
    """The set that scores this package of checks: the installed one's, and of any other (in tests) a file
    ``requirements.toml`` in it, or all that it has.
    """
    if package == SUITE:
        return read_set(current_name(), FOLDER)
    checks = all_checks(package)
    folder = Path(str(sys.modules[package].__file__)).parent
    if (folder / "requirements.toml").exists():
        return read_set("requirements", folder)
    return RequirementSet(current_name(), as_requirements(checks))


def all_sets(folder: Path = FOLDER) -> list[RequirementSet]:
    """Every set that there is, oldest first."""
    names = [path.stem for path in folder.glob("*.toml") if _VERSION.fullmatch(path.stem)]
    return [read_set(name, folder) for name in sorted(names, key=_number)]


def as_requirements(checks: Iterable[Check]) -> dict[str, Requirement]:
    """What a set has of these checks."""
    return {
        check.id: Requirement(check.level, check.requires.value if check.requires else "", check.sentence)
        for check in checks
    }


def contradictions(sets: Sequence[RequirementSet], checks: Iterable[Check]) -> list[str]:
    """Where the suite, or a later set, does not keep what an earlier one says; a sentence each."""
    found = []
    suite = as_requirements(checks)
    for position, old in enumerate(sets):
        for later in sets[position + 1 :]:
            found += [
                f"{check} of set {old.name} is not in set {later.name}"
                for check in old.requirements.keys() - later.requirements.keys()
            ]
        for check, was in old.requirements.items():
            now = suite.get(check)
            if now is None:
                found.append(f"{check} of set {old.name} is not in the suite")
            else:
                found += [
                    f"{check}: {name} is {getattr(now, name)!r}, and set {old.name} has {getattr(was, name)!r}"
                    for name in ("level", "requires", "sentence")
                    if getattr(now, name) != getattr(was, name)
                ]
    return sorted(found)


def write_set(checks: Sequence[Check], name: str, of_version: str, folder: Path = FOLDER) -> Path:
    """Write the set of the coming version. Raises ``RequirementsError`` for any other one."""
    if name != ".".join(of_version.split(".")[:2]):
        raise RequirementsError(
            f"set {name} belongs to another version than {of_version}: a released set stays as it is"
        )
    if not re.fullmatch(rf"{re.escape(name)}\.0(?!\d).*", of_version):
        raise RequirementsError(
            f"set {name} was released with {name}.0, and this is {of_version}: new checks are not scored before the next "
            "minor version"
        )
    older = [one for one in all_sets(folder) if _number(one.name) < _number(name)]
    wrong = contradictions([*older, RequirementSet(name, as_requirements(checks))], checks)
    if wrong:
        raise RequirementsError("a check never changes its meaning under its id:\n  " + "\n  ".join(wrong))
    path = folder / f"{name}.toml"
    path.write_text(_HEAD.format(name=name) + "".join(_table(check) for check in checks), encoding="utf-8")
    return path


def _table(check: Check) -> str:
    # What JSON makes of a text is a basic string of TOML too.
    lines = [f'\n["{check.id}"]', f'level = "{check.level.value}"']
    if check.requires:
        lines.append(f'requires = "{check.requires.value}"')
    lines.append(f"sentence = {json.dumps(check.sentence, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _number(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("."))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the suite with the sets, or write the coming one. Exit status: 0 they agree, 1 they don't, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m kv_conformance.requirements", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write the set of the version that is being worked on")
    asked = parser.parse_args(arguments)
    checks = all_checks()
    try:
        if asked.write:
            path = write_set(checks, current_name(), version("kv-conformance"))
            sys.stdout.write(f"{path}: {len(checks)} checks\n")
            return 0
        wrong = contradictions(all_sets(), checks)
    except RequirementsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in wrong) or "the suite keeps what every set says\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

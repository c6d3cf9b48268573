"""A folder that plays site-packages and has one mutant installed, found through real entry points."""

from __future__ import annotations

import os
from pathlib import Path

from conformance.tests.mutants.base import DISTRIBUTION, MODULE, VERSION, Mutant

ROOT = Path(__file__).resolve().parents[3]
"""The repository: by this path in front, the plugin finds this package."""
HARNESSES = "conformance.tests.mutants.harness"
PACKAGE = "conformance.tests.mutants"


def install(mutant: Mutant, folder: Path) -> None:
    """Write the plugin's module and its distribution's metadata into an empty folder."""
    backend = f"[kv_core.backends]\n{mutant.name} = {MODULE}\n"
    _metadata(folder, DISTRIBUTION, f"{backend}\n[kv_core.conformance]\n{mutant.name} = {HARNESSES}:{mutant.harness}\n")
    if mutant.rivals:
        _metadata(folder, f"{DISTRIBUTION}-rival", backend)
    text = mutant.plugin.replace("{package}", PACKAGE).replace("{name!r}", repr(mutant.name))
    (folder / f"{MODULE}.py").write_text(text, encoding="utf-8")


def _metadata(folder: Path, distribution: str, entry_points: str) -> None:
    metadata = folder / f"{distribution.replace('-', '_')}-{VERSION}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {VERSION}\nRequires-Dist: kv-core>=0.1.0,<0.2\n",
        encoding="utf-8",
    )
    (metadata / "entry_points.txt").write_text(entry_points, encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process that shall see what is installed in ``folder``."""
    # What a mutant, or a check of it, leaves in the folder for temporary files goes with the run.
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    path = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TMPDIR": str(scratch)}

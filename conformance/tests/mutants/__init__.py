"""Broken backends: each breaks one promise of the contract, and names the check that must notice.

A suite that lets one of them pass proves nothing. ``conformance.tests.matrix`` runs the suite against all of them.
"""

from importlib import import_module

from conformance.tests.mutants.base import MUTANTS, Mutant, record_of

MODULES = (
    "references", "naming", "registering", "meeting", "copying", "telling", "ending", "claiming", "handling", "dropping",
    "sending", "managing", "model_mutants", "topology", "pulling",
)  # fmt: skip
"""Where they are defined; the references come first."""

for _module in MODULES:
    import_module(f"conformance.tests.mutants.{_module}")

__all__ = ["MODULES", "MUTANTS", "Mutant", "record_of"]

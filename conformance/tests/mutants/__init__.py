"""Broken backends: each breaks one promise of the contract, and names the check that must notice.

A suite that lets one of them pass proves nothing. ``conformance.tests.matrix`` runs the suite against all of them.
"""

from conformance.tests.mutants import references
from conformance.tests.mutants.base import MUTANTS, Mutant, record_of

__all__ = ["MUTANTS", "Mutant", "record_of", "references"]

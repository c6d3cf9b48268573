"""Runs the suite against every mutant and compares the complete maps of outcomes with the recorded ones.

    python -m conformance.tests.matrix [--only NAME] [--whole] [--write] [--jobs 2] [--markdown docs/conformance-mutants.md]

The references must be all green first, in the same session; a report counts only if it is this very run's. Each mutant is
run against all checks of the area of the check that must catch it, and with ``--whole`` against all that there are: of
the short part, unless that check is a long one. The recorded maps are of the latter kind.
"""

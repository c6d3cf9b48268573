"""Runs the suite against every mutant and compares the complete maps of outcomes with the recorded ones.

    python -m conformance.tests.matrix [--only NAME] [--whole] [--write] [--jobs 2] [--markdown docs/conformance-mutants.md]

The references must be all green first, in the same session; a report counts only if it is this very run's. Then each
mutant is run against the check that must catch it and a few that it should leave alone, and the outcomes are compared
with the recorded ones. With ``--whole`` it is run against all checks, if it is the first to name its check (of the short
part, unless that check is a long one), else against all of the named check's area; this is what is recorded.
"""

"""Unequal topologies end to end: real processes, one for each rank, on every backend, with the oracle of
``core.tests.layout.topologies``.

``pairs`` and ``refused`` list the pairs of shapes, ``memory`` cuts a rank's memory out of the model, ``rank_main`` is the
program of a rank, ``scene`` has the ranks of one case, ``judge`` runs a pair and says what was wrong, ``faults`` gives rooms up.
"""

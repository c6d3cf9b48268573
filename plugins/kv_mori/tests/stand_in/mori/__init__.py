"""A stand-in for amd-mori: the part of its surface that kv-mori uses, moving real bytes over TCP. Tests only.

The signatures are MORI's, which ``test_mori_surface.py`` checks against the published wheel. ``cpp`` stands for the
compiled module, ``io`` for the Python one above it. How it behaves (a status per pair of regions, a queue pair that stays
broken once something failed, an engine that ends its threads when it is dropped) follows MORI's sources.
"""

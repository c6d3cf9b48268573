"""The protocol in virtual time: both sides' machines, engines, a network, a data plane, faults, and what must hold.

    python -m core.tests.simulation --seeds 20000 --mutants
    python -m core.tests.simulation --seed 4711          # one schedule, with its trace

Everything that happens in a schedule follows from its seed.
"""

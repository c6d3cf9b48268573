"""The whole model's cache as one tensor, every rank's memory cut out of it by indexing, and plans that must agree with it.

    python -m core.tests.layout.topologies [--seed N] [--product N]

``model`` is the oracle: it knows heads, tokens and layers, and nothing of the planner's arithmetic. ``world`` moves what
the plans say from source ranks to a poisoned destination. ``cases`` has the pairs of topologies.
"""

"""The protocol between prefill and decode ranks, pure: room life cycle, messages, links, deadlines, leases, liveness.

Nothing here does I/O, starts a thread or reads a clock; time comes in as a float (monotonic seconds) and what is to be
done comes out as a list of effects. That makes it possible to *simulate* it: see ``core/tests/simulation``.
"""

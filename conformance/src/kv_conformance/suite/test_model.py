"""KV-MODEL: histories. Everything together, in an order that is drawn, against a model.

The message of a failure ends with its acts. To do them again::

    with Env("acme", AcmeHarness(), check_of(test_rooms_in_any_order), seed=0) as env:
        model_face.replay(env, [...])

What the engine and its threads do in between is not in it: a history may have to be repeated until it goes wrong once more.
"""

from __future__ import annotations

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.suite.model_face import explore_faces
from kv_conformance.suite.model_run import Budget
from kv_conformance.suite.model_wire import explore_wires
from kv_core import Capability

GATE = Budget(100, crashes=2)
FULL = Budget(400, crashes=20)


@check(
    "KV-MODEL-1", faults=(Fault.KILL, Fault.RESTART), limit_s=300.0,
    reaches=("a room succeeded", "a number was used again", "a process was killed"),
)  # fmt: skip
def test_rooms_in_any_order(env: Env) -> None:
    """Whatever two engines do with their rooms, in whatever order, with room numbers that are used again and processes that
    are killed: each room ends once, Success means that exactly its own bytes are there, and no byte is written anywhere else.

    If this fails, look at what one room keeps that the next one of its number, or another one, finds.
    """
    explore_faces(env, _budget(env))


@check(
    "KV-MODEL-2", faults=(Fault.KILL, Fault.RESTART, Fault.FREEZE), limit_s=300.0,
    reaches=("a transfer was done", "the target was killed"),
)  # fmt: skip
def test_transfers_in_any_order(env: Env) -> None:
    """Whatever is done with a transport, in whatever order (peers met and removed, transfers submitted, cancelled and
    released, the target stopped and replaced): DONE means that the bytes are there, quiescent that none can land any more, and
    no other byte is written.

    If this fails, look at what one transfer, or one generation of a peer, keeps that another one finds.
    """
    explore_wires(env, _budget(env))


def _budget(env: Env) -> Budget:
    """The full one where it costs nothing but time."""
    return FULL if not getattr(env, "gate", True) and env.declares(Capability.EMBEDDED) else GATE

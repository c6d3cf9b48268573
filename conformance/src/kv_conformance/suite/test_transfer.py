"""KV-XFER: moving bytes."""

from __future__ import annotations

from kv_conformance.catalog import check
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import Shape


@check("KV-XFER-1")
def test_every_byte_arrives_and_no_other_is_touched(env: Env) -> None:
    """A transfer copies every byte of the items that it names to where it says, and touches nothing else.

    If this fails, look at how submit() turns a batch into addresses: both lists of items, one for one, on every lane.
    """
    writer, target = env.ends(Shape(kv=(4, 64, 1024)))
    road = writer.meet(target)
    here, there = env.random.permutation(64)[:40], env.random.permutation(64)[:40]
    expected = target.memory.image()
    expected.take(writer.memory, there, here)
    writer.write(road, (here, there))
    wrong = target.memory.difference(expected)
    assert not wrong, wrong

"""KV-TOPO, the second part: rooms between instances of unequal topologies, a process for each rank."""

from __future__ import annotations

from functools import partial
from time import sleep
from typing import Any

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import POISON, Image
from kv_conformance.outcomes import Untestable
from kv_conformance.suite.cache import Model, Side
from kv_conformance.suite.endings import REASON
from kv_conformance.suite.held import LOOK_S, PATIENT, REUSED
from kv_conformance.suite.topologies import share, written
from kv_conformance.suite.topology_faces import Instances, Seat
from kv_core import FailureCode, KVPoll

SOON_S = 0.1


@check("KV-TOPO-9", reaches=("one source is done, and the other has not begun",))
def test_several_sources_of_one_room(env: Env) -> None:
    """Several prefill ranks may serve one decode rank in a room: it ends well, on all of them, when all have sent their parts, and
    not before. Each sender's metric counts what that rank sent, the receiver's what all of them did; an auxiliary row
    comes from one of them.

    If this fails, look at a receiver of your own that is content with one source, and at what your transport keeps for a
    process that writes from several sides at once.
    """
    model = Model(row=40, tokens=32)
    pair = Instances(env, model, Side(tp=2), Side())
    (decode,) = pair.decodes
    pair.begin()
    first, second = pair.prefills
    first.send()
    part = decode.expected(units=share(model, first.rank.side, 0), row=False)
    # The row may go with the bytes, or by a message at the end.
    env.wait_until(partial(_holds, decode, part), "the pages of the first source")
    env.reached("one source is done, and the other has not begun")
    sleep(SOON_S)
    pair.none_has_ended("one of two sources has sent nothing yet")
    half = len(second.rank.pages) // 2
    second.send(second.rank.pages[:half])
    second.send(second.rank.pages[half:])
    pair.succeed()
    pair.everything()
    whole, row = written(decode.expected(row=False)), 2 * model.row
    of_first = written(part)
    _counts(decode, whole + row, 2)
    _counts(first, of_first + row, 1)
    _counts(second, whole - of_first, 2)


@check("KV-TOPO-10", reaches=("one destination has named its pages, and the other has not",), gate=False)
def test_several_destinations_of_one_room(env: Env) -> None:
    """One prefill rank may serve several decode ranks in a room, each by a plan of its own: it waits for input until all of them have
    named their pages, each gets its part, and the sender's metric counts all of them, each receiver's its own. So it is with pieces
    as they are, and where the backend has core stage them.

    If this fails, look for what you keep of a plan or a peer for longer than a batch, and at a sender of your own that knows one
    peer; with ``staging_below``, whether memory can be registered after the first descriptor was made.
    """
    for config in ({"staging_bytes": 0}, {}):
        _two_destinations(env, config)


def _two_destinations(env: Env, config: dict[str, Any]) -> None:
    model = Model(row=40, tokens=24)
    pair = Instances(env, model, Side(), Side(tp=2), config=config)
    (prefill,) = pair.prefills
    pair.open()
    prefill.init()
    pair.decodes[1].name_pages()
    pair.decodes[1].room.until(KVPoll.WaitingForInput, KVPoll.Failed)
    sleep(SOON_S)
    state = prefill.room.poll()
    assert state is KVPoll.Bootstrapping, (
        f"one of two decode ranks has named its pages, and the sender is {state.name}, expected Bootstrapping"
    )
    env.reached("one destination has named its pages, and the other has not")
    pair.decodes[0].name_pages()
    prefill.room.until(KVPoll.WaitingForInput, KVPoll.Failed)
    for part in (prefill.rank.pages[:5], prefill.rank.pages[5:6], prefill.rank.pages[6:]):
        prefill.send(part)
    pair.succeed()
    pair.everything()
    parts = [written(decode.expected()) for decode in pair.decodes]
    for decode, nbytes in zip(pair.decodes, parts, strict=True):
        _counts(decode, nbytes, 3)
    _counts(prefill, sum(parts), 3)
    pair.moves()
    pair.close()


@check("KV-TOPO-11", gate=False)
def test_pages_of_other_sizes(env: Env) -> None:
    """Each side counts in its own pages: init() takes prefill's, send_metadata() decode's, and decode_prefix_len too, which the
    sender has in its own. A prompt may end within a larger page, of which the rest stays as it is.

    If this fails, look at a sender or receiver of your own that compares numbers of pages of the two sides.
    """
    for order, here, there, prefix in (("NHD", 4, 2, 0), ("HND", 2, 8, 8), ("HND", 4, 2, 4), ("NHD", 2, 4, 4)):
        sides = Side(page=here, order=order), Side(page=there, order=order)
        pair = Instances(env, Model(tokens=28 if there < 8 else 30), *sides, prefix=prefix)
        (sender,) = pair.prefills
        for init_late in (False, True):
            pair.begin(init_late=init_late)
            seen, wanted = sender.node.process.ask("decode_prefix_len", sender.room.number), prefix // here
            assert seen == wanted, (
                f"decode has {prefix} tokens already, prefill's pages have {here}: decode_prefix_len is {seen}, not {wanted}"
            )
            sender.send(sender.rank.pages[:1])
            sender.send(sender.rank.pages[1:])
            pair.succeed()
            pair.everything()
        pair.close()


@check("KV-TOPO-12", gate=False)
def test_layers_of_other_stages(env: Env) -> None:
    """A range of layers counts the model's layers, whatever stages hold them: a chunk of some moves to each decode rank what that one
    has of them, and nothing to one that has none. The room ends when every rank has all of its layers.

    If this fails, look at a sender of your own that counts layers from the first of its stage, and at plans without lanes for
    the layers of a batch.
    """
    model = Model(layers=4, tokens=16)
    pair = Instances(env, model, Side(), Side(pp=2))
    (sender,), (low, high) = pair.prefills, pair.decodes
    pair.begin()
    seen: set[int] = set()
    for layers in (range(2, 3), range(2), range(3, 4)):
        pair.none_has_ended(f"layers {sorted(set(range(4)) - seen)} were not sent")
        sender.send(layers=layers)
        seen |= set(layers)
        for seat in (low, high):
            env.wait_until(
                partial(seat.has, seat.expected(layers=seen)), f"layers {sorted(seen)} at {seat.name}, and no other"
            )
    pair.succeed()
    pair.everything()
    pair.close()
    pair = Instances(env, model, Side(pp=2), Side())
    (first, last), (decode,) = pair.prefills, pair.decodes
    pair.begin()
    last.send(layers=range(3, 4))
    first.send(layers=range(2))
    env.wait_until(partial(decode.has, decode.expected(layers={0, 1, 3})), "layers 0, 1 and 3, and no other")
    pair.none_has_ended("layer 2 was not sent")
    last.send(layers=range(1, 3))
    pair.succeed()
    pair.everything()


@check(
    "KV-TOPO-13",
    faults=(Fault.HOLD_DATA, Fault.FREEZE),
    reaches=("a source stands still with bytes on their way",),
    gate=False,
)
def test_a_room_with_several_sources_that_is_given_up(env: Env) -> None:
    """When one rank gives up a room that several serve it fails on all of them. Decode's pages are free when *all* sources are
    quiescent: while one of them stands still, with bytes on their way, they are not, whatever the others say.

    If this fails, look at an is_release_safe() of your own: one source's word is not enough.
    """
    model = Model(heads=2, head_bytes=256 << 10, tokens=32)
    pair = Instances(env, model, Side(tp=2), Side(), fault=Fault.HOLD_DATA, config=PATIENT)
    (decode,), (first, second) = pair.decodes, pair.prefills
    pair.moves()
    of_second = decode.expected(units=share(model, second.rank.side, 1))
    for by in (first, decode):
        pair.begin()
        decode.node.freeze()
        second.send()
        second.room.until(KVPoll.Transferring, KVPoll.Failed)
        sleep(LOOK_S)
        second.node.freeze()
        decode.node.thaw()
        sleep(LOOK_S)
        if _holds(decode, of_second):
            raise Untestable(
                "the bytes arrive although the process that receives is stopped: this fabric does not need it. A harness may "
                "name a setting for Fault.HOLD_DATA under which it does"
            )
        env.reached("a source stands still with bytes on their way")
        by.room.abort(REASON)
        for seat in (first, decode):
            failure = seat.room.failed()
            code = FailureCode.ABORTED_LOCAL if seat is by else FailureCode.ABORTED_REMOTE
            assert failure.code is code, f"{seat.name}: expected code {code.value}, seen {failure}"
        first.node.await_safe(first.room)
        sleep(LOOK_S)
        assert not decode.room.is_release_safe(), (
            f"{decode.name}: is_release_safe() is True while {second.name} stands still, which has begun to write there"
        )
        second.node.thaw()
        assert second.room.failed().code is FailureCode.ABORTED_REMOTE
        for seat in pair.seats:
            seat.node.await_safe(seat.room)
        decode.node.memory.whole[:] = REUSED
        sleep(LOOK_S)
        strange = int((decode.node.memory.whole != REUSED).sum())
        assert not strange, f"{decode.name}: {strange} bytes landed after is_release_safe() had said that none can"
    pair.moves()


@check("KV-TOPO-14", gate=False)
def test_a_rank_that_serves_nobody(env: Env) -> None:
    """What several prefill ranks hold alike one of them sends. A rank that has nothing to send opens the room, announces its pages
    and sends them as the others do: its room ends as theirs does, with a metric of no bytes, and is given up with theirs.

    If this fails, look at a sender of your own that waits for a peer, or takes a room in which nothing moved for a failure.
    """
    model = Model(layers=1, latent=True, head_bytes=100, tokens=20)
    pair = Instances(env, model, Side(tp=2), Side())
    (decode,), (first, second) = pair.decodes, pair.prefills
    pair.moves()
    nbytes = written(decode.expected())
    for seat, wanted in ((decode, nbytes), (first, nbytes), (second, 0)):
        seen = seat.room.metric().transfer_total_bytes
        assert seen == wanted, f"{seat.name}: transfer_total_bytes is {seen}, expected {wanted}"
    pair.begin()
    second.send()
    sleep(SOON_S)
    pair.none_has_ended("the rank that has all of the bytes has sent nothing yet")
    decode.room.abort(REASON)
    for seat in (first, second):
        code = seat.room.failed().code
        assert code is FailureCode.ABORTED_REMOTE, f"{seat.name}: expected code aborted_remote, seen {code.value}"
    for seat in pair.seats:
        seat.node.await_safe(seat.room)
    pair.moves()


# -- what the checks have in common --------------------------------------------------------------------------------


def _holds(seat: Seat, part: Image) -> bool:
    """Whether all that is in ``part`` is in the rank's memory; what else is there is not looked at."""
    return bool(((part.whole == seat.node.memory.whole) | (part.whole == POISON)).all())


def _counts(seat: Seat, nbytes: int, chunks: int) -> None:
    metric = seat.room.metric()
    assert metric.transfer_total_bytes == nbytes, (
        f"{seat.name}: transfer_total_bytes is {metric.transfer_total_bytes}, expected {nbytes}"
    )
    assert metric.chunks == chunks, f"{seat.name}: chunks is {metric.chunks}, expected {chunks}"

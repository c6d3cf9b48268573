"""The oracle of KV-MODEL-1: from what an engine did and saw, what may be seen next, and what must come.

It knows nothing of any backend, and of kv-core only the contract's vocabulary. A backend has threads, so a history has many
good outcomes: the book holds what each of them has in common, and which moments exclude which others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kv_conformance.nodes.memory import U8
from kv_conformance.suite.model_ledger import Item, Ledger
from kv_conformance.suite.model_life import Broken, Life, Seen
from kv_core import FailureCode, KVPoll, Role

TROUBLES = frozenset({
    FailureCode.PEER_LOST, FailureCode.PEER_REPLACED, FailureCode.TRANSPORT_ERROR, FailureCode.CLOSED,
    FailureCode.ABORTED_REMOTE, FailureCode.TIMEOUT,
})  # fmt: skip
"""Why a room may fail whose life saw a process die."""
CAUSES = {
    FailureCode.ABORTED_REMOTE: FailureCode.ABORTED_LOCAL,
    FailureCode.INVALID_REQUEST: FailureCode.INVALID_REQUEST,
}
"""A failure that came from the other side, and what it was there."""
SLACK_S = 0.005
"""By how much a duration may be longer than what the suite measured around it: clocks are read one after the other."""


class Book:
    """Everything that was done and seen since the memories were last at rest."""

    def __init__(self, target: Ledger) -> None:
        self.target = target
        self.step = 0
        self.lives: list[Life] = []
        self.down: set[Role] = set()
        self.turmoil = False
        self._news: list[Life] = []

    # -- what the engine does --------------------------------------------------------------------------------------

    def opened(self, name: str, side: Role, room: int, began_s: float) -> Life:
        """A handle was created."""
        life = Life(name, side, room, self.step, began_s, taken=self.current(side, room) is not None)
        life.troubled = self.turmoil
        self.lives.append(life)
        return life

    def sent(self, life: Life, pages: Sequence[int], contents: Sequence[U8], *, calls: int, aux: U8 | None) -> None:
        """A sender was given these pages, in so many calls; with the last of them goes the auxiliary row."""
        life.pages = [*(life.pages or ()), *pages]
        life.contents += contents
        life.chunks += calls
        life.aux_content = aux if life.complete else None
        for other in self.rivals(life):
            self._allow(life, other)

    def offered(self, life: Life, pages: Sequence[int], aux: int | None) -> None:
        """A receiver named these pages."""
        life.pages, life.aux, life.count = list(pages), aux, len(pages)
        self.target.open(life.items)
        for other in self.rivals(life):
            self._allow(other, life)

    def _allow(self, sender: Life, receiver: Life) -> None:
        if receiver.pages is not None and not receiver.closed:
            for item, content in self._delivery(sender, receiver).items():
                self.target.allow(item, content)

    @staticmethod
    def _delivery(sender: Life, receiver: Life) -> dict[Item, U8]:
        """What this sender would put where, of what it was given."""
        pairs = zip(receiver.pages or (), sender.contents, strict=False)
        found: dict[Item, U8] = {("kv", page): content for page, content in pairs}
        if receiver.aux is not None and sender.aux_content is not None:
            found["aux", receiver.aux] = sender.aux_content
        return found

    def cut(self, life: Life, *, clear: bool) -> None:
        """It was aborted, or cleared."""
        life.cleared = life.cleared or clear
        if life.live and life.cut is None:
            life.cut = self.step

    def crashed(self, side: Role) -> None:
        """The process of this side has ended; every handle in it is gone, and what was written stays as it is."""
        self.down.add(side)
        self.turmoil = True
        for life in self.lives:
            if not life.closed or life.live:
                life.troubled = True
            if life.side is side and not life.dead:
                life.dead = True
                life.ended = self.step if life.ended is None else life.ended
                self._close(life)

    def recovered(self) -> None:
        """Every process that was killed has a successor, and rooms go well: what went before is known everywhere."""
        self.turmoil = False
        for life in self.lives:
            if life.dead:
                life.gone = self.step if life.gone is None else life.gone

    # -- what is seen ----------------------------------------------------------------------------------------------

    def saw(self, life: Life, seen: Seen) -> None:
        """A handle says this now. Raises ``Broken`` if it can't."""
        was, life.seen = life.seen, seen
        if was is not None and was.ended and not was.same(seen):
            raise Broken(f"{life} had ended and has changed: it said {_words(was)}, and now says {_words(seen)}")
        if was is not None and was.release_safe and not seen.release_safe:
            raise Broken(f"{life}: is_release_safe() was True and is False now")
        if seen.release_safe and not seen.ended:
            raise Broken(f"{life}: is_release_safe() is True in {seen.state.name}: the room has not ended")
        if not seen.ended and seen.state < life.best:
            raise Broken(f"{life}: poll() went back from {life.best.name} to {seen.state.name}")
        if seen.state is not KVPoll.Failed and seen.state not in self._possible(life):
            raise Broken(f"{life}: poll() says {seen.state.name}, {self._why_not(life, seen.state)}")
        life.best = max(life.best, seen.state)
        self._check_metric(life, seen)
        if seen.ended and life.ended is None:
            life.ended = self.step
            self._news.append(life)
        if seen.ended and life.gone is None and (life.side is Role.PREFILL or seen.release_safe):
            life.gone = self.step

    def check(self) -> None:
        """What the sides say together, and both memories. After ``saw`` of everything that has changed; the bytes are
        looked at after that. Raises ``Broken``.
        """
        for life in self.lives:
            if life.live and (life.cut is not None or life.taken):
                what = "its number is in use on this side" if life.taken else "it was aborted or cleared"
                raise Broken(f"{life}: {what}, and poll() says {life.state.name} afterwards, expected Failed")
        self._pair()
        news, self._news = self._news, []
        for life in news:
            if life.state is KVPoll.Failed:
                self._explain(life)
            elif life.side is Role.DECODE:
                self._received(life)
        for life in self.lives:
            if life.partner is not None:
                self._agree(life, life.partner)
        problem = self.target.wrong()
        if problem:
            raise Broken(f"decode's memory: {problem}")
        for life in self.lives:
            if life.seen is not None and life.seen.release_safe:
                self._close(life)

    def _close(self, life: Life) -> None:
        if life.side is Role.DECODE and life.pages is not None and not life.closed:
            problem = self.target.close(life.items)
            if problem:
                raise Broken(f"decode's memory: {problem}")
        life.closed = True

    # -- states ----------------------------------------------------------------------------------------------------

    def rivals(self, life: Life) -> list[Life]:
        """The openings of its number on the other side that it may have to do with."""
        if life.taken:
            return []
        return [
            other for other in self.lives
            if other.side is not life.side and other.room == life.room and not other.taken and life.overlaps(other)
        ]  # fmt: skip

    def current(self, side: Role, room: int) -> Life | None:
        """The handle that has this number on this side."""
        found = (
            life for life in self.lives
            if life.side is side and life.room == room and not (life.cleared or life.taken or life.dead)
        )  # fmt: skip
        return next(found, None)

    def _possible(self, life: Life) -> set[KVPoll]:
        found, rivals = {KVPoll.Bootstrapping}, self.rivals(life)
        if life.side is Role.PREFILL:
            named = [other for other in rivals if other.pages is not None]
            if named:
                found.add(KVPoll.WaitingForInput)
                found |= {KVPoll.Transferring} if life.chunks else set()
            if life.complete and any(len(other.pages or ()) == life.count for other in named):
                found.add(KVPoll.Success)
            return found
        if life.initialised:
            found.add(KVPoll.WaitingForInput)
        if life.pages is not None and rivals:
            found.add(KVPoll.Transferring)
            if any(other.complete and other.count == life.count for other in rivals):
                found.add(KVPoll.Success)
        return found

    def _why_not(self, life: Life, state: KVPoll) -> str:
        there = ", ".join(f"{other.name} ({other.state.name})" for other in self.rivals(life)) or "nobody"
        mine = f"init {'called' if life.initialised else 'not called'}, {len(life.pages or ())} pages of {life.count}"
        return f"which can't be: on its own side {mine}; on the other side there is {there}"

    def _check_metric(self, life: Life, seen: Seen) -> None:
        if seen.state is KVPoll.Failed:
            if seen.code is None:
                raise Broken(f"{life} has failed and failure() says nothing")
            if seen.nbytes is not None or any(value is not None for value in seen.latencies):
                raise Broken(f"{life} has failed, and its metric is not None: {_words(seen)}")
            return
        if seen.code is not None:
            raise Broken(f"{life}: failure() says {seen.code.value}, and poll() says {seen.state.name}")
        longest = seen.now_s - life.began_s + SLACK_S
        for value in seen.latencies:
            if value is not None and not 0 <= value <= longest:
                raise Broken(
                    f"{life}: its metric has a duration of {value:.6f} s, and it was opened {longest:.6f} s ago: {_words(seen)}"
                )
        nbytes, chunks = self._volume(life)
        if seen.state is not KVPoll.Success:
            if (seen.nbytes or 0) > nbytes:
                raise Broken(f"{life}: its metric says {seen.nbytes} bytes, of at most {nbytes}: {_words(seen)}")
        elif seen.nbytes != nbytes:
            raise Broken(
                f"{life} succeeded, and its metric says {seen.nbytes} bytes, expected {nbytes}: {_words(seen)}"
            )
        elif life.side is Role.PREFILL and life.count and seen.chunks != chunks:
            raise Broken(f"{life} succeeded, and its metric says {seen.chunks} chunks, expected {chunks}")

    def _volume(self, life: Life) -> tuple[int, int]:
        """(bytes, chunks) of the whole room, as far as this side knows."""
        rows = self.target.nbytes("aux") if life.aux is not None else 0
        return (life.count or 0) * self.target.nbytes("kv") + rows, life.chunks

    # -- both sides ------------------------------------------------------------------------------------------------

    def _pair(self) -> None:
        """Find out who belongs to whom, where only one can be meant."""
        for life in self.lives:
            bound = life.best >= (KVPoll.WaitingForInput if life.side is Role.PREFILL else KVPoll.Transferring)
            if bound and life.partner is None:
                able = [
                    o
                    for o in self.rivals(life)
                    if o.partner is None and (o.pages is not None or o.side is Role.PREFILL)
                ]
                if not able:
                    raise Broken(
                        f"{life} is {life.state.name}, and whoever it could be bound to is bound to another one"
                    )
                if len(able) == 1:
                    life.partner, able[0].partner = able[0], life

    def _received(self, life: Life) -> None:
        """A receiver succeeded: all bytes of one sender must be there."""
        able = [
            other for other in self.rivals(life)
            if other.complete and other.count == life.count and other.partner in (None, life)
        ]  # fmt: skip
        able = [other for other in able if life.partner in (None, other)]
        lacks = [self.target.lacks(self._delivery(other, life)) for other in able]
        if not able:
            raise Broken(f"{life} succeeded, and no sender of its number had sent all of {life.count} pages to it")
        if all(lacks):
            raise Broken(f"{life} succeeded, and the bytes of {able[-1]} are not there: {lacks[-1]}")
        fits = [other for other, problem in zip(able, lacks, strict=True) if not problem]
        if life.partner is None and len(fits) == 1:
            life.partner, fits[0].partner = fits[0], life

    @staticmethod
    def _agree(one: Life, other: Life) -> None:
        for here, there in ((one, other), (other, one)):
            if here.state is KVPoll.Success and there.state is KVPoll.Failed:
                own = there.code is FailureCode.ABORTED_LOCAL or there.misused or there.troubled
                if not (own and there.side is Role.PREFILL):  # after decode's success, before prefill knew of it
                    raise Broken(f"{here} succeeded, and {there}, the other side of it, failed: {_said(there)}")

    def _explain(self, life: Life) -> None:
        """Raises ``Broken`` if nothing that happened is a reason for this failure."""
        if not self._has_reason(life, life.code):
            there = ", ".join(f"{o.name} {_said(o)}" for o in self.rivals(life)) or "nobody"
            raise Broken(
                f"{life} failed, and nothing that happened is a reason: {_said(life)}. On the other side: {there}"
            )

    def _has_reason(self, life: Life, code: FailureCode | None) -> bool:
        if life.taken or code is FailureCode.DUPLICATE_ROOM:
            return life.taken and code is FailureCode.DUPLICATE_ROOM
        if code is FailureCode.ABORTED_LOCAL:
            return life.cut is not None
        if life.troubled and code in TROUBLES:
            return True
        if self._has_own_cause(life):
            return True
        return code in CAUSES and self._is_caused(life, CAUSES[code])

    def _has_own_cause(self, life: Life) -> bool:
        wrong = life.misused or any(_differ(life, other) for other in self.rivals(life))
        return life.code is FailureCode.INVALID_REQUEST and wrong

    def _is_caused(self, life: Life, cause: FailureCode) -> bool:
        """Whether each failure that came from the other side has an own cause there: one can't end two rooms."""
        told = [
            other for other in self.lives
            if other.side is life.side and other.room == life.room and other.code is life.code and not other.troubled
            and not self._has_own_cause(other)
        ]  # fmt: skip
        causes = [
            other for other in self.lives
            if other.side is not life.side and other.room == life.room and other.code is cause
            and (cause is FailureCode.ABORTED_LOCAL or other.misused)
        ]  # fmt: skip
        given: dict[Life, Life] = {}
        return all(_assign(one, causes, given, set()) for one in told)

    # -- what must come --------------------------------------------------------------------------------------------

    def waits(self) -> list[str]:
        """What has to happen by itself, and has not been seen: a sentence each."""
        found = [
            f"{life} has ended, and is_release_safe() is False"
            for life in self.lives
            if not life.dead and life.ended is not None and not (life.seen and life.seen.release_safe)
        ]
        for room in dict.fromkeys(life.room for life in self.lives):
            found += self._waits_in(self._going(Role.PREFILL, room), self._going(Role.DECODE, room))
        for life in self.lives:
            other = life.partner
            if other is not None and life.state is KVPoll.Success and other.live:
                found.append(f"{life} succeeded, and {other} is {other.state.name}")
        return found

    def _forestalled(self, life: Life) -> Life | None:
        """The opening on the other side that was aborted before this one, and which this one alone can belong to."""
        there = [o for o in self.lives if o.room == life.room and o.side is not life.side and not o.taken]
        last = there[-1] if there else None
        if last is None or last.code is not FailureCode.ABORTED_LOCAL or last.troubled or life.troubled:
            return None
        if last.gone is None or last.gone >= life.opened:
            return None
        here = [
            o for o in self.lives
            if o.room == life.room and o.side is life.side and not o.taken and (o.gone is None or o.gone >= last.opened)
        ]  # fmt: skip
        return last if here == [life] else None

    def _going(self, side: Role, room: int) -> Life | None:
        life = self.current(side, room)
        return life if life is not None and life.live else None

    def _waits_of(self, life: Life) -> Iterable[str]:
        if life.misused:
            yield f"{life} was called wrongly, and is {life.state.name}"
        before = self._forestalled(life)
        if before is not None and (life.side is Role.PREFILL or life.initialised):
            yield f"{life} is {life.state.name}, and its other side, {before}, was aborted before it was opened"

    def _waits_in(self, sender: Life | None, receiver: Life | None) -> Iterable[str]:
        for life in (sender, receiver):
            if life is not None:
                yield from self._waits_of(life)
        if (
            sender is not None
            and sender.state >= KVPoll.WaitingForInput
            and (receiver is None or receiver.pages is None)
        ):
            yield f"{sender} is {sender.state.name}, and whoever named pages to it has ended"
        if receiver is not None and receiver.state is KVPoll.Transferring and sender is None:
            yield f"{receiver} is {receiver.state.name}, and the sender that took its pages has ended"
        if receiver is None or not receiver.initialised or Role.PREFILL in self.down:
            return
        if receiver.state is KVPoll.Bootstrapping:
            yield f"{receiver} is Bootstrapping, and its prefill rank is there"
        if sender is None or receiver.pages is None:
            return
        if sender.state is KVPoll.Bootstrapping:
            yield f"{sender} is Bootstrapping, and {receiver} has named its pages"
        if receiver.state is not KVPoll.Transferring:
            yield f"{receiver} is {receiver.state.name}, and {sender} is there to take its pages"
        if sender.complete or (sender.count is not None and sender.count != receiver.count):
            yield f"{sender} and {receiver} have said everything ({sender.count} and {receiver.count} pages), and go on"


def _differ(one: Life, other: Life) -> bool:
    return one.count is not None and other.count is not None and one.count != other.count


def _assign(one: Life, causes: Sequence[Life], given: dict[Life, Life], tried: set[Life]) -> bool:
    """Find a cause for this failure, moving those that were given before where need be (Kuhn's algorithm)."""
    for cause in causes:
        fits = one.partner in (None, cause) and cause.partner in (None, one)
        early = cause.ended is not None and one.ended is not None and cause.ended <= one.ended
        if fits and early and cause not in tried:
            tried.add(cause)
            if cause not in given or _assign(given[cause], causes, given, tried):
                given[cause] = one
                return True
    return False


def _said(life: Life) -> str:
    return _words(life.seen) if life.seen else "nothing yet"


def _words(seen: Seen) -> str:
    why = f", {seen.code.value}: {seen.failure}" if seen.code else ""
    values: Mapping[str, object] = {"bytes": seen.nbytes, "chunks": seen.chunks, "latencies": seen.latencies}
    metric = "" if seen.code else f", metric {values}"
    return f"{seen.state.name}{why}{metric}"

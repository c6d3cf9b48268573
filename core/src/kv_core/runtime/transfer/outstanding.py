"""Transfers that the transport has taken and that are not known to be quiescent: driven, cancelled, released."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from kv_core.contract.enums import TransferState
from kv_core.contract.transport import Transfer, TransferProgress, Transport
from kv_core.runtime.transfer.job import Posting
from kv_core.runtime.transfer.troubles import SURVIVED, Troubles, described

RETRY_S = 0.1
"""A transfer for which ``progress`` raised is asked about alone, at most this often."""


class Outcomes(Protocol):
    """Who hears how postings go."""

    def on_done(self, posting: Posting, wire_seconds: float | None) -> None:
        """All bytes landed, maybe after the posting was reported as failed; quiescent."""
        ...

    def on_failed(self, posting: Posting, error: str) -> None:
        """The posting failed; told once, and nothing is said about quiescence."""
        ...

    def on_quiescent(self, posting: Posting) -> None:
        """A failed posting became quiescent."""
        ...


class Outstanding:
    """The owner's list of transfers. Owner thread only, except ``count`` and ``nbytes``."""

    def __init__(
        self, transport: Transport, troubles: Troubles, clock: Callable[[], float], outcomes: Outcomes
    ) -> None:
        self._transport = transport
        self._troubles = troubles
        self._clock = clock
        self._outcomes = outcomes
        self._postings: dict[int, Posting] = {}  # by identity: transfers need not be hashable, nor differ as values
        self._group: list[Transfer] | None = []  # those asked about together; None: to be listed anew
        self._alone: list[Posting] = []
        self.nbytes = 0
        self.strays = 0

    @property
    def count(self) -> int:
        """Number of transfers. Any thread."""
        return len(self._postings)

    @property
    def next_retry(self) -> float | None:
        """When a transfer that is asked about alone comes up next."""
        return min((posting.retry_at for posting in self._alone if posting.retry_at is not None), default=None)

    def add(self, posting: Posting) -> None:
        """Take up a posting whose ``transfer`` is set."""
        self._postings[id(posting.transfer)] = posting
        self.nbytes += posting.nbytes
        self._group = None

    def progress(self) -> None:
        """Ask the transport how all of them are going, and tell."""
        if self._group is None:
            self._group = [p.transfer for p in self._postings.values() if p.retry_at is None and p.transfer is not None]
        group = self._group
        if group:
            error = self._ask(group)
            if error is not None:
                self._single_out(group, error)
        if self._alone:
            now = self._clock()
            for posting in [p for p in self._alone if p.retry_at is not None and p.retry_at <= now]:
                posting.retry_at = now + RETRY_S
                if posting.transfer is not None:
                    self._ask([posting.transfer])

    def cancel(self, posting: Posting) -> None:
        """Ask for an early end, once."""
        if posting.transfer is None or posting.cancelled or id(posting.transfer) not in self._postings:
            return
        posting.cancelled = True
        try:
            self._transport.cancel(posting.transfer)
        except SURVIVED as error:
            self._troubles.add("cancel() failed", error)

    def unproven(self) -> list[Posting]:
        """Those that have failed and are not known to be quiescent."""
        return [posting for posting in self._postings.values() if posting.failed]

    def settle(self, posting: Posting) -> None:
        """It is proven from elsewhere that this failed posting is quiescent."""
        self._forget(posting)
        self._outcomes.on_quiescent(posting)

    def drop_all(self) -> list[Posting]:
        """At the end: release everything, quiescent or not; returns what was outstanding."""
        postings = list(self._postings.values())
        for posting in postings:
            self._forget(posting)
        return postings

    def _ask(self, transfers: list[Transfer]) -> BaseException | None:
        try:
            self._take(self._transport.progress(transfers))
        except SURVIVED as error:
            self._troubles.add("progress() failed", error)
            return error
        return None

    def _single_out(self, group: list[Transfer], error: BaseException) -> None:
        """One exception came for many transfers: find out whose it is, so that no other room fails for it."""
        for transfer in group:
            posting = self._postings.get(id(transfer))
            if posting is None:
                continue
            raised = error if len(group) == 1 else self._ask([transfer])
            if raised is not None and id(transfer) in self._postings:
                posting.retry_at = self._clock() + RETRY_S
                self._alone.append(posting)
                self._group = None
                self._fail(posting, described(raised))

    def _take(self, records: Iterable[TransferProgress]) -> None:
        for record in records:
            posting = self._postings.get(id(record.transfer))
            if posting is None:
                self.strays += 1
            elif record.state is TransferState.DONE:
                self._forget(posting)
                self._outcomes.on_done(posting, record.wire_seconds)
            elif record.state is TransferState.FAILED:
                self._fail(posting, record.error or "the transfer failed, and the transport does not say why")
                if record.quiescent:
                    self._forget(posting)
                    self._outcomes.on_quiescent(posting)

    def _fail(self, posting: Posting, error: str) -> None:
        if not posting.failed:
            posting.failed = True
            self._outcomes.on_failed(posting, error)

    def _forget(self, posting: Posting) -> None:
        del self._postings[id(posting.transfer)]
        self.nbytes -= posting.nbytes
        self._group = None
        if posting.retry_at is not None:
            self._alone.remove(posting)
        if posting.transfer is not None:
            try:
                self._transport.release(posting.transfer)
            except SURVIVED as error:
                self._troubles.add("release() failed", error)

"""How a batch gets to the transport: on the owner thread, for transports whose ``submit`` never waits for bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kv_core.contract.transport import PeerKey, Transport
from kv_core.layout import Batch
from kv_core.runtime.transfer.job import PeerState, Posting
from kv_core.runtime.transfer.troubles import SURVIVED


class Answers(Protocol):
    """Who hears what became of a posting. Called on the owner thread."""

    def on_posted(self, posting: Posting) -> None:
        """The transport took it: ``posting.transfer`` is set."""
        ...

    def on_refused(self, posting: Posting, error: BaseException) -> None:
        """``submit`` raised."""
        ...

    def on_withheld(self, posting: Posting) -> None:
        """It was not submitted, because its job had been stopped meanwhile."""
        ...

    def on_overdue(self, posting: Posting, seconds: float) -> None:
        """``submit`` has not returned for longer than it may take."""
        ...

    def on_free(self, peer: PeerKey) -> None:
        """The peer can be posted to again."""
        ...


class Poster(Protocol):
    """Gives batches to the transport. All methods are the owner's, except ``snapshot`` and ``health``."""

    def free(self, peer: PeerState) -> bool:
        """Whether ``post`` may be called for this peer now; if not, ``on_free`` or another answer comes later."""
        ...

    def post(self, posting: Posting, batch: Batch) -> None:
        """Submit; the answer comes now or in a later ``turn``."""
        ...

    def turn(self) -> None:
        """Pass on answers that have come, and look at the clock."""
        ...

    def remove(self, peer: PeerKey) -> None:
        """Nothing more will be posted to this peer."""
        ...

    def pending(self) -> bool:
        """Whether answers are waiting for ``turn``. Any thread."""
        ...

    def busy(self) -> int:
        """Number of postings without an answer. Any thread."""
        ...

    def close(self, deadline: float) -> bool:
        """End every thread, waiting until the clock shows ``deadline``; True if all have ended."""
        ...

    def health(self) -> dict[str, dict[str, object]]:
        """The threads besides the owner. Any thread."""
        ...


class DirectPoster:
    """For ``ThreadingModel.OWNER``: calls ``submit`` at once."""

    def __init__(self, transport: Transport, clock: Callable[[], float], answers: Answers) -> None:
        self._transport = transport
        self._clock = clock
        self._answers = answers

    def free(self, peer: PeerState) -> bool:
        """Always."""
        return True

    def post(self, posting: Posting, batch: Batch) -> None:
        """Submit on this thread."""
        prepared = posting.job.peer.prepared
        assert prepared is not None, "only peers that are prepared are posted to"
        posting.started = self._clock()
        try:
            posting.transfer = self._transport.submit(prepared, batch)
        except SURVIVED as error:
            self._answers.on_refused(posting, error)
        else:
            self._answers.on_posted(posting)

    def turn(self) -> None:
        """Nothing waits here."""

    def remove(self, peer: PeerKey) -> None:
        """Nothing is kept here."""

    def pending(self) -> bool:
        """Never."""
        return False

    def busy(self) -> int:
        """None: each answer comes before ``post`` returns."""
        return 0

    def close(self, deadline: float) -> bool:
        """There are no threads."""
        return True

    def health(self) -> dict[str, dict[str, object]]:
        """There are no threads."""
        return {}

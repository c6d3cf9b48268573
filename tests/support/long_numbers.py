"""Rooms that never come into being: their numbers can't be, or their address can't, or they are warm-up requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kv_core import FailureCode, KVPoll
from kv_core.contract.config import FAKE_BOOTSTRAP_HOST
from tests.support.long_flat import await_rest
from tests.support.long_ways import LONG, WARM_ROOM
from tests.support.pair import Pair

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Numbers:
    """What is opened: makes (address, number) from the pair's address and a running number."""

    name: str
    make: Callable[[str, int], tuple[str, Any]]
    code: FailureCode | None = FailureCode.INVALID_REQUEST


WRONG: tuple[Any, ...] = (-1, -(2**63), 2**63, 2**64, 1.5, "7", None, True)
ADDRESSES = ("", "nowhere", "127.0.0.1:0", "127.0.0.1:65536", "::1:80", "http://127.0.0.1:80/")
NUMBERS = (
    Numbers("invalid: number", lambda addr, n: (addr, WRONG[n % len(WRONG)])),
    Numbers("invalid: address", lambda _, n: (ADDRESSES[n % len(ADDRESSES)], n)),
    Numbers("warm-up", lambda _, n: (f"{FAKE_BOOTSTRAP_HOST}:8998", n), None),
)


class NumberScene:
    """Opens both sides of each room, and looks at the verdict."""

    def __init__(self, numbers: Numbers, seed: int) -> None:
        self.numbers = numbers
        self.pair = Pair(config=LONG, seed=seed)
        self.ended: dict[str, Counter[str]] = {"prefill": Counter(), "decode": Counter()}
        self.violations: list[str] = []
        self._number = 0
        self.pair.good_room(WARM_ROOM)  # so that every connection is there before anything is counted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.pair.close()

    def drive(self, rooms: int) -> None:
        """So many rooms."""
        pair = self.pair
        for _ in range(rooms):
            self._number += 1
            addr, number = self.numbers.make(pair.addr, self._number)
            sender, receiver = pair.prefill.create_sender(addr, number), pair.decode.create_receiver(addr, number)
            sender.init(1)
            receiver.init()
            receiver.send_metadata([0])
            sender.send([0])
            self._judge("prefill", sender)
            self._judge("decode", receiver)

    def _judge(self, side: str, handle: Any) -> None:
        failure = handle.failure()
        code = None if failure is None else failure.code
        state = KVPoll.Success if self.numbers.code is None else KVPoll.Failed
        handle.poll()
        self.ended[side]["success" if code is None else code.value] += 1
        if handle.poll() is not state or code is not self.numbers.code or not handle.is_release_safe():
            self.violations.append(f"{side} room {handle.room}: {handle.poll().name}, {failure}")
        handle.clear()

    def rest(self) -> list[str]:
        """Wait until no counter of either side says that anything is alive."""
        return await_rest({"prefill": self.pair.prefill.snapshot, "decode": self.pair.decode.snapshot})

    def finish(self) -> list[str]:
        """What went wrong in all."""
        return self.violations

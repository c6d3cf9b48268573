"""Backends that get memory wrong."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

from conformance.tests.mutants.base import mutant
from kv_core import Region, RegistrationError, TransportError
from kv_fake import FakeTransport


@mutant("registration_without_rollback", "KV-MEM-1")
class RegistrationWithoutRollback(FakeTransport):
    """On an error nothing of the call stays registered: here what came before the refused region does."""

    def register_memory(self, regions: Sequence[Region]) -> None:
        try:
            super().register_memory(regions)
        except RegistrationError as error:
            self._memory.register(regions[: error.region])
            raise


@mutant("wrong_region_in_the_error", "KV-MEM-1")
class WrongRegionInTheError(FakeTransport):
    """A registration error names the region's position in the call: here always the first."""

    def register_memory(self, regions: Sequence[Region]) -> None:
        try:
            super().register_memory(regions)
        except RegistrationError as error:
            error.region = 0
            raise


@mutant("untyped_registration_error", "KV-MEM-1")
class UntypedRegistrationError(FakeTransport):
    """Memory that can't be registered is a ``RegistrationError``: here a plain ``TransportError``."""

    def register_memory(self, regions: Sequence[Region]) -> None:
        try:
            super().register_memory(regions)
        except RegistrationError as error:
            raise TransportError(str(error), quiescent=True) from error


@mutant("registration_fails_in_silence", "KV-MEM-1")
class RegistrationFailsInSilence(FakeTransport):
    """Memory that can't be registered is an error: here only an entry in the log, and what came before is registered."""

    def register_memory(self, regions: Sequence[Region]) -> None:
        try:
            super().register_memory(regions)
        except RegistrationError as error:
            self._logger.warning("%s", error)
            self._memory.register(regions[: error.region])


@mutant("deregister_drops_twins", "KV-MEM-2")
class DeregisterDropsTwins(FakeTransport):
    """A range that was registered twice is deregistered twice: here once is enough."""

    def deregister_memory(self, regions: Sequence[Region]) -> None:
        super().deregister_memory([region for region in regions for _ in range(2)])


@mutant("deregister_of_strangers_raises", "KV-MEM-6")
class DeregisterOfStrangersRaises(FakeTransport):
    """Regions that are unknown are ignored by ``deregister_memory``: here they are an error."""

    def deregister_memory(self, regions: Sequence[Region]) -> None:
        for region in regions:
            if region not in self._memory:
                raise TransportError(f"region {region.index} is not registered", quiescent=True)
        super().deregister_memory(regions)


@mutant("deregistered_and_still_written", "KV-MEM-6")
class DeregisteredAndStillWritten(FakeTransport):
    """Memory that was deregistered is not reachable any more: here it stays so."""

    def deregister_memory(self, regions: Sequence[Region]) -> None:
        return


def _overlap(one: Region, other: Region) -> bool:
    """Whether two regions share memory, and are not the same."""
    same = (one.address, one.nbytes) == (other.address, other.nbytes)
    return not same and one.address < other.address + other.nbytes and other.address < one.address + one.nbytes


@mutant("refuses_overlap_in_one_call", "KV-MEM-3")
class RefusesOverlapInOneCall(FakeTransport):
    """Ranges of one call may overlap: here the second one is refused."""

    def register_memory(self, regions: Sequence[Region]) -> None:
        for position, region in enumerate(regions):
            if any(_overlap(region, other) for other in regions[:position]):
                raise RegistrationError("these ranges overlap", region=position, errno=errno.EEXIST)
        super().register_memory(regions)


@mutant("refuses_overlap_of_two_calls", "KV-MEM-4")
class RefusesOverlapOfTwoCalls(FakeTransport):
    """Ranges may overlap those of earlier calls: here one that goes beyond them is refused."""

    def register_memory(self, regions: Sequence[Region]) -> None:
        for position, region in enumerate(regions):
            for other in self._memory._regions:
                inside = (
                    other.address <= region.address and region.address + region.nbytes <= other.address + other.nbytes
                )
                if _overlap(region, other) and not inside:
                    raise RegistrationError("this range overlaps another one", region=position, errno=errno.EEXIST)
        super().register_memory(regions)


@mutant("pages_are_deregistered", "KV-MEM-5")
class PagesAreDeregistered(FakeTransport):
    """Deregistering a region leaves its neighbours as they are: here all that share a page of 4 KiB with it go, too."""

    def deregister_memory(self, regions: Sequence[Region]) -> None:
        pages = {page for region in regions if region in self._memory for page in _pages(region)}
        doomed = [other for other in self._memory._regions if pages & set(_pages(other))]
        super().deregister_memory([*regions, *(region for region in doomed if region not in regions)])


def _pages(region: Region) -> range:
    return range(region.address >> 12, (region.address + region.nbytes - 1 >> 12) + 1)


@mutant("refused_registration_leaves_a_thread", "KV-MEM-7")
class RefusedRegistrationLeavesAThread(FakeTransport):
    """A manager whose memory is refused leaves nothing behind: here a thread that would have watched the memory."""

    def register_memory(self, regions: Sequence[Region]) -> None:
        try:
            super().register_memory(regions)
        except RegistrationError:
            threading.Thread(target=threading.Event().wait, name="memory-watch").start()
            raise

"""What an exposition says, as numbers; and observers fed with what machines on a bench have told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from core.tests.protocol.support import Rank
from kv_core.contract.enums import Capability, Role
from kv_core.contract.records import BackendInfo, PeerEvent, RoomEvent
from kv_core.observe import PrometheusMetrics
from kv_core.protocol import effects as fx

INFO = BackendInfo("test", "kv-test", "1.2.3", (1, 0), frozenset({Capability.WRITE}))


class Samples:
    """Every sample of an exposition. ``value`` adds up those that have the labels."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.all = [sample for family in self.families.values() for sample in family.samples]

    def of(self, name: str, **labels: str) -> list[Any]:
        """The samples of this name with (at least) these labels."""
        return [s for s in self.all if s.name == name and labels.items() <= s.labels.items()]

    def value(self, name: str, **labels: str) -> float:
        """Their sum. There has to be one."""
        found = self.of(name, **labels)
        assert found, f"no sample {name} {labels}"
        return sum(sample.value for sample in found)


def scrape(registry: CollectorRegistry) -> Samples:
    """What Prometheus would see."""
    from prometheus_client import generate_latest

    return Samples(generate_latest(registry).decode())


def fresh(**more: Any) -> tuple[CollectorRegistry, PrometheusMetrics]:
    """Metrics in a registry of their own."""
    registry = CollectorRegistry()
    return registry, PrometheusMetrics(registry, **more)


def feed(observer: Any, events: Iterable[RoomEvent | PeerEvent]) -> None:
    """Tell events as core's dispatcher does."""
    for event in events:
        (observer.kv_peer_event if isinstance(event, PeerEvent) else observer.kv_room_event)(event)


def told(rank: Rank) -> list[RoomEvent | PeerEvent]:
    """Everything that a rank on the bench told observers: rooms, then peers."""
    return [*rank.told, *(effect.event for effect in rank.asked if isinstance(effect, fx.TellPeer))]


def observe(*ranks: Rank) -> Samples:
    """What is exported after observers were told all that these ranks told."""
    registry, metrics = fresh()
    for rank in ranks:
        feed(metrics.observer(INFO, rank.machine.me.role), told(rank))
    return scrape(registry)


BOTH = (Role.PREFILL, Role.DECODE)

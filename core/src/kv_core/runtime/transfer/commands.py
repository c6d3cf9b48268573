"""What the protocol asks of the transport besides moving chunks: peers, fences, digests."""

from __future__ import annotations

from collections import OrderedDict

from kv_core.contract.failures import TransportError
from kv_core.contract.transport import PeerKey, Prepared, TransferPlan, Transport
from kv_core.layout import Placement
from kv_core.protocol.effects import AddPeer, FencePeer, RemovePeer, VerifyDigests
from kv_core.protocol.peers import Peer
from kv_core.runtime.fabric_rule import FabricRule
from kv_core.runtime.rules import Pair
from kv_core.runtime.transfer.aux import AuxDataCodec
from kv_core.runtime.transfer.digest import Hasher
from kv_core.runtime.transfer.dispatch import Dispatcher
from kv_core.runtime.transfer.reports import Reports
from kv_core.runtime.transfer.staging import Staging
from kv_core.runtime.transfer.troubles import SURVIVED, Troubles, described
from kv_core.runtime.transfer.verify import Verifier

REMEMBERED = 4_096
"""Peers that were removed before they were added: so many are remembered, for the addition that overtakes nobody."""


class Commands:
    """Performs effects on the owner thread; nothing that they raise goes further than here."""

    def __init__(
        self, transport: Transport, dispatcher: Dispatcher, reports: Reports, troubles: Troubles, hasher: Hasher,
        codec: AuxDataCodec, fabric_rule: FabricRule, staging: Staging, max_pages: int,
    ) -> None:  # fmt: skip
        self._transport = transport
        self._dispatcher = dispatcher
        self._reports = reports
        self._troubles = troubles
        self._fabric_rule = fabric_rule
        self._staging = staging
        self._verifier = Verifier(hasher, codec, self._plan_of, max_pages)
        self._known: dict[str, PeerKey] = {}  # by name: the generation that the transport knows
        self._idle: set[PeerKey] = set()  # peers of which the transport knows nothing, for nothing moves
        self._removed_early: OrderedDict[PeerKey, None] = OrderedDict()

    def perform(self, command: AddPeer | RemovePeer | FencePeer | VerifyDigests) -> None:
        """Perform one command and report. Never raises what a transport raises."""
        if isinstance(command, AddPeer):
            self._add_peer(command)
        elif isinstance(command, RemovePeer):
            self._remove_peer(command.peer)
        elif isinstance(command, FencePeer):
            self._fence(command.peer)
        else:
            self._verify(command)

    def _add_peer(self, command: AddPeer) -> None:
        peer = command.peer
        if peer in self._removed_early:
            del self._removed_early[peer]
            return
        known = self._known.get(peer.name, peer)
        try:
            if known.generation > peer.generation:
                raise TransportError(f"generation {peer.generation} of peer {peer.name} is of the past", quiescent=True)
            if known != peer and known not in self._idle:
                self._transport.remove_peer(known)
            self._known[peer.name] = peer
            plan, placement = command.layout.plan(), command.layout.placement
            if not plan.pools:  # nothing moves between the two: the transport need not know of the peer
                self._idle.add(peer)
                self._dispatcher.peer_ready(peer, plan, placement, Prepared(peer, plan), "", command.process)
                self._reports.peer_met(peer)
                return
            self._transport.add_peer(peer, command.descriptor)
            wider, staged = self._staging.plan(plan)
            prepared = self._transport.prepare(peer, wider)
            fabric = str(self._transport.describe(peer))
        except SURVIVED as error:
            self._troubles.add("a peer could not be added", error)
            self._dispatcher.peer_unusable(peer, described(error))
            self._reports.peer_failed(peer, described(error))
            return
        problem = self._fabric_rule.problem(fabric)
        if problem:
            self._dispatcher.peer_unusable(peer, problem)
            self._reports.peer_refused(peer, problem)
        else:
            self._dispatcher.peer_ready(peer, plan, placement, prepared, fabric, command.process, staged)
            self._reports.peer_met(peer)

    def _remove_peer(self, peer: PeerKey) -> None:
        if self._known.get(peer.name) == peer:
            del self._known[peer.name]
        if not self._dispatcher.remove_peer(peer):
            self._removed_early[peer] = None
            if len(self._removed_early) > REMEMBERED:
                self._removed_early.popitem(last=False)
            return
        if peer in self._idle:
            self._idle.discard(peer)
            return
        try:
            self._transport.remove_peer(peer)
        except SURVIVED as error:
            self._troubles.add("remove_peer() failed", error)

    def _fence(self, peer: PeerKey) -> None:
        try:
            self._transport.fence(peer)
        except SURVIVED as error:
            self._troubles.add("fence() failed", error)
            self._reports.fence(peer, proven=False)
        else:
            self._reports.fence(peer, proven=True)

    def _verify(self, command: VerifyDigests) -> None:
        try:
            problem = self._verifier.problem(command)
        except SURVIVED as error:
            self._troubles.add("digests could not be compared", error)
            problem = described(error)
        self._reports.verified(command, problem)

    def _plan_of(self, peer: Peer) -> tuple[TransferPlan, Placement]:
        """The plan between a peer and this rank, in the order in which the peer sends."""
        pair = peer.layout
        if not isinstance(pair, Pair):
            raise TypeError(f"the layout of peer {peer.name} is not known here")
        known = self._dispatcher.peers.get(peer.key)
        plan = known.plan if known is not None else None
        return plan or pair.plan(), pair.placement

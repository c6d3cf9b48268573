"""What crosses the bootstrap's wire, as values: registrations, routes, health. Pure: no sockets, no clock.

The JSON names are SGLang's (``CommonKVManager.register_to_bootstrap`` and ``PrefillServerInfo``), with ours beside
them. Unknown keys are ignored, so that versions can roll; a missing or ill-typed one is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from kv_core.contract.config import MAX_ROOM
from kv_core.contract.failures import InvalidConfig, MessageError
from kv_core.runtime.bootstrap.addresses import canonical_host, format_address, is_wildcard

Ranks = tuple[int, int, int, int]
"""(tp, pp, cp, dp): a rank's place, or the sizes along these axes."""
AXES = ("tp", "pp", "cp", "dp")

MAX_RANKS = 65_536
"""Largest number of ranks of one prefill instance."""
MAX_ROOMS_PER_QUERY = 2_048
"""Most rooms in one ``POST /query_dp_ranks``."""
MAX_VERSIONS = 64
"""Most pairs of versions that a route tells; a rolling update has two."""
MAX_PAGE_SIZE = 2**31 - 1
MAX_AGE_S = 1e9

RankNumber = Annotated[int, Meta(ge=0, le=MAX_RANKS - 1)]
Size = Annotated[int, Meta(ge=1, le=MAX_RANKS)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Text = Annotated[str, Meta(min_length=1, max_length=128)]
SoftwareVersion = Annotated[str, Meta(max_length=64)]
Host = Annotated[str, Meta(min_length=1, max_length=253)]
Version = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_AGE_S)]
Room = Annotated[int, Meta(ge=0, le=MAX_ROOM)]
PageSize = Annotated[int, Meta(ge=1, le=MAX_PAGE_SIZE)]

_T = TypeVar("_T")


def decode_json(body: bytes, kind: type[_T], what: str) -> _T:
    """Read JSON of one type. Raises ``MessageError`` with a sentence that begins with ``what`` and names the key."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise MessageError(f"{what}: the JSON is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise MessageError(f"{what}: {error}") from None


class RankRegistration(msgspec.Struct, frozen=True, kw_only=False):
    """One prefill rank as it introduces itself.

    instance_id: of the rank's manager, unique in the world and for ever. ranks, sizes: (tp, pp, cp, dp). rank_ip,
    rank_port: where peers reach its control socket (no wildcard address). page_size in tokens. progress_age_s: seconds
    since the rank's own work last made progress, at the moment of sending. core_version, backend_version: of its
    distributions, for people; empty if it does not tell.
    """

    instance_id: str
    ranks: Ranks
    sizes: Ranks
    rank_ip: str
    rank_port: int
    page_size: int
    kv_cache_dtype: str
    kv_layout: str
    backend: str
    protocol_version: int
    progress_age_s: float = 0.0
    core_version: str = ""
    backend_version: str = ""

    def check(self) -> None:
        """Raise ``MessageError`` with a sentence if the values make no sense together."""
        for axis, rank, size in zip(AXES, self.ranks, self.sizes, strict=True):
            if not 0 <= rank < size:
                raise MessageError(f"{axis} rank {rank} must lie in 0..{size - 1}, because the {axis} size is {size}")
        if prod(self.sizes) > MAX_RANKS:
            raise MessageError(
                f"sizes (tp, pp, cp, dp) {self.sizes} make {prod(self.sizes)} ranks, at most {MAX_RANKS}"
            )
        for name in ("instance_id", "kv_cache_dtype", "kv_layout", "backend", "core_version", "backend_version"):
            if not getattr(self, name).isprintable():
                raise MessageError(f"{name} must be printable text, got {getattr(self, name)!r}")

    @property
    def shape(self) -> Shape:
        """What all ranks of one prefill instance must have in common."""
        return Shape(
            sizes=self.sizes,
            page_size=self.page_size,
            kv_cache_dtype=self.kv_cache_dtype,
            kv_layout=self.kv_layout,
            backend=self.backend,
            protocol_version=self.protocol_version,
        )

    def encode(self) -> bytes:
        """The body of ``PUT /route``."""
        tp, pp, cp, dp = self.ranks
        tp_size, pp_size, cp_size, dp_size = self.sizes
        return msgspec.json.encode(
            _RegistrationMessage(
                attn_tp_rank=tp,
                attn_tp_size=tp_size,
                pp_rank=pp,
                pp_size=pp_size,
                attn_cp_rank=cp,
                attn_cp_size=cp_size,
                attn_dp_rank=dp,
                attn_dp_size=dp_size,
                rank_ip=self.rank_ip,
                rank_port=self.rank_port,
                page_size=self.page_size,
                kv_cache_dtype=self.kv_cache_dtype,
                kv_layout=self.kv_layout,
                instance_id=self.instance_id,
                backend=self.backend,
                protocol_version=self.protocol_version,
                progress_age_s=min(max(self.progress_age_s, 0.0), MAX_AGE_S),
                core_version=self.core_version,
                backend_version=self.backend_version,
            )
        )


class Shape(msgspec.Struct, frozen=True):
    """What all ranks that share a bootstrap server must have in common."""

    sizes: Ranks
    page_size: int
    kv_cache_dtype: str
    kv_layout: str
    backend: str
    protocol_version: int

    def differences(self, other: Shape) -> list[str]:
        """Every field that differs, as "name: own value here, other value there"."""
        return [
            f"{name}: {getattr(self, name)!r} here, {getattr(other, name)!r} in the registration"
            for name in self.__struct_fields__
            if getattr(self, name) != getattr(other, name)
        ]


class _RegistrationMessage(msgspec.Struct, frozen=True, kw_only=True):
    attn_tp_rank: RankNumber
    attn_tp_size: Size
    pp_rank: RankNumber
    pp_size: Size
    attn_cp_rank: RankNumber
    attn_cp_size: Size
    attn_dp_rank: RankNumber
    attn_dp_size: Size
    rank_ip: Host
    rank_port: Port
    page_size: PageSize
    kv_cache_dtype: Text
    kv_layout: Text
    instance_id: Text
    backend: Text
    protocol_version: Version
    progress_age_s: Seconds = 0.0
    core_version: SoftwareVersion = ""
    backend_version: SoftwareVersion = ""


def decode_registration(body: bytes) -> RankRegistration:
    """Read the body of ``PUT /route``. Raises ``MessageError`` naming the key."""
    message = decode_json(body, _RegistrationMessage, "the body of PUT /route")
    registration = RankRegistration(
        instance_id=message.instance_id,
        ranks=(message.attn_tp_rank, message.pp_rank, message.attn_cp_rank, message.attn_dp_rank),
        sizes=(message.attn_tp_size, message.pp_size, message.attn_cp_size, message.attn_dp_size),
        rank_ip=check_host(message.rank_ip, "rank_ip"),
        rank_port=message.rank_port,
        page_size=message.page_size,
        kv_cache_dtype=message.kv_cache_dtype,
        kv_layout=message.kv_layout,
        backend=message.backend,
        protocol_version=message.protocol_version,
        progress_age_s=message.progress_age_s,
        core_version=message.core_version,
        backend_version=message.backend_version,
    )
    registration.check()
    return registration


class Goodbye(msgspec.Struct, frozen=True):
    """The body of ``DELETE /route``: every rank that this instance registered is forgotten."""

    instance_id: Text


class DpRankRegistration(msgspec.Struct, frozen=True):
    """The body of ``POST /register_dp_rank``."""

    bootstrap_room: Room
    dp_rank: RankNumber


class DpRankQuery(msgspec.Struct, frozen=True):
    """The body of ``POST /query_dp_ranks``."""

    bootstrap_rooms: Annotated[list[Room], Meta(max_length=MAX_ROOMS_PER_QUERY)]


class RankAddress(msgspec.Struct, frozen=True):
    """Where one prefill rank's control socket is, and which process that is."""

    host: str
    port: int
    instance_id: str

    @property
    def address(self) -> str:
        """``host:port``."""
        return format_address(self.host, self.port)


class RouteInfo(msgspec.Struct, frozen=True):
    """A whole prefill instance, as its bootstrap server describes it: every rank is there.

    ``server_instance`` is the bootstrap server's own instance id; ``ranks`` is keyed by (tp, pp, cp, dp). ``versions``:
    (kv-core's, the backend's) as the ranks tell, each pair once.
    """

    server_instance: str
    sizes: Ranks
    page_size: int
    kv_cache_dtype: str
    kv_layout: str
    backend: str
    protocol_version: int
    ranks: Mapping[Ranks, RankAddress]
    versions: tuple[tuple[str, str], ...] = ()


class RankEntry(msgspec.Struct, frozen=True):
    """One element of ``ranks`` in the answer to ``GET /route``."""

    attn_tp_rank: RankNumber
    pp_rank: RankNumber
    attn_cp_rank: RankNumber
    attn_dp_rank: RankNumber
    rank_ip: Host
    rank_port: Port
    instance_id: Text


class PrefillServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``GET /route`` for all ids -1: SGLang's fields, then ours.

    ``follow_bootstrap_room`` is always false: no rank is derived from a room's number here; a router says which data
    parallel rank it chose (``POST /register_dp_rank``).
    """

    attn_tp_size: Size
    attn_cp_size: Size
    dp_size: Size
    pp_size: Size
    page_size: PageSize
    kv_cache_dtype: Text
    kv_layout: Text
    follow_bootstrap_room: bool = False
    backend: Text
    protocol_version: Version
    server_instance: Text
    ranks: Annotated[list[RankEntry], Meta(max_length=MAX_RANKS)]
    versions: Annotated[list[tuple[SoftwareVersion, SoftwareVersion]], Meta(max_length=MAX_VERSIONS)] = []

    def route(self) -> RouteInfo:
        """The same as a ``RouteInfo``. Raises ``MessageError`` unless every rank is there once, at a usable address."""
        sizes = (self.attn_tp_size, self.pp_size, self.attn_cp_size, self.dp_size)
        ranks: dict[Ranks, RankAddress] = {}
        for entry in self.ranks:
            key = (entry.attn_tp_rank, entry.pp_rank, entry.attn_cp_rank, entry.attn_dp_rank)
            if any(rank >= size for rank, size in zip(key, sizes, strict=True)):
                raise MessageError(f"rank (tp, pp, cp, dp) {key} lies outside of the sizes {sizes}")
            ranks[key] = RankAddress(check_host(entry.rank_ip, "rank_ip"), entry.rank_port, entry.instance_id)
        if not len(ranks) == len(self.ranks) == prod(sizes):
            raise MessageError(
                f"{len(self.ranks)} ranks listed, {len(ranks)} of them different, but sizes {sizes} make {prod(sizes)}"
            )
        return RouteInfo(
            server_instance=self.server_instance,
            sizes=sizes,
            page_size=self.page_size,
            kv_cache_dtype=self.kv_cache_dtype,
            kv_layout=self.kv_layout,
            backend=self.backend,
            protocol_version=self.protocol_version,
            ranks=ranks,
            versions=tuple(self.versions),
        )


class RankHealth(msgspec.Struct, frozen=True):
    """How one rank is. ``age_s``: seconds since its last renewal. ``progress_age_s``: seconds since its work last made
    progress, as of this answer (what the rank said at its last renewal, plus ``age_s``).
    """

    ranks: tuple[RankNumber, RankNumber, RankNumber, RankNumber]
    instance_id: Text
    age_s: Seconds
    progress_age_s: Seconds


class HealthReport(msgspec.Struct, frozen=True):
    """The answer to ``GET /health``. ``instance_id`` is the bootstrap server's; ``ready``: every rank is registered.

    ``status`` is "ok" when ready, else "waiting".
    """

    status: Annotated[str, Meta(max_length=32)]
    instance_id: Text
    ready: bool
    ranks: Annotated[list[RankHealth], Meta(max_length=MAX_RANKS)]

    def instances(self) -> dict[Ranks, str]:
        """Instance id of each registered rank."""
        return {rank.ranks: rank.instance_id for rank in self.ranks}


class Refusal(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON body of every answer that isn't 200. ``missing_ranks`` names at most 64 of ``missing_count`` ranks."""

    error: str
    missing_ranks: list[Ranks] = msgspec.field(default_factory=list)
    missing_count: int = 0


def check_host(host: str, name: str) -> str:
    """The host in canonical form. Raises ``MessageError`` for one that no peer could connect to."""
    try:
        canonical = canonical_host(host)
    except InvalidConfig as error:
        raise MessageError(f"{name}: {error}") from None
    if is_wildcard(canonical):
        raise MessageError(
            f"{name}: {host} stands for every interface and can't be connected to; "
            "set TransferConfig.advertised_host to what peers can reach"
        )
    return canonical

"""The bootstrap server's routes: read a request, ask the tables, write the answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from time import monotonic

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from kv_core.contract.failures import MessageError
from kv_core.runtime.bootstrap.guard import json_response, refusal_response
from kv_core.runtime.bootstrap.loop_thread import Complaints
from kv_core.runtime.bootstrap.routes import (
    MAX_RANKS,
    DpRankQuery,
    DpRankRegistration,
    Goodbye,
    Ranks,
    Refusal,
    decode_json,
    decode_registration,
)
from kv_core.runtime.bootstrap.table import DpRankTable, RequestRefused, RouteTable

MAX_BODY_BYTES = 64 * 1024
BODY_LIMIT_S = 5.0
"""Longest time that a body may take to arrive."""
_NUMBER = re.compile(r"-?[0-9]{1,10}", re.ASCII)
_QUERY_KEYS = ("target_tp_rank", "target_pp_rank", "prefill_cp_rank", "prefill_dp_rank")
"""In the order of ``Ranks``: (tp, pp, cp, dp)."""


class BootstrapHandlers:
    """Answers every request of one server. All of it runs on the loop's thread, which owns the tables."""

    def __init__(self, routes: RouteTable, rooms: DpRankTable, instance_id: str, complaints: Complaints) -> None:
        self.requests = 0
        self.refused = 0
        self._routes = routes
        self._rooms = rooms
        self._instance_id = instance_id
        self._complaints = complaints
        self._done = msgspec.json.encode({"status": "ok", "server_instance": instance_id})
        self._info: tuple[int, int, bytes] | None = None  # version, status and body of the last GET /route for all
        self._actions: dict[tuple[str, str], Callable[[web.BaseRequest, bytes], web.Response]] = {
            ("PUT", "/route"): self._put_route,
            ("DELETE", "/route"): self._delete_route,
            ("GET", "/route"): self._get_route,
            ("POST", "/register_dp_rank"): self._register_dp_rank,
            ("POST", "/query_dp_ranks"): self._query_dp_ranks,
            ("GET", "/health"): self._get_health,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever is wrong with it becomes a typed refusal with a sentence."""
        self.requests += 1
        try:
            action = self._action(request)
            body = b"" if request.method == "GET" else await _read_json_body(request)
            return action(request, body)
        except RequestRefused as refused:
            self.refused += 1
            return refusal_response(refused.status, refused.body)
        except MessageError as error:
            self.refused += 1
            return refusal_response(400, Refusal(str(error)))
        except ConnectionError:
            raise  # the client went away; aiohttp knows what to do
        except Exception as error:  # noqa: BLE001 - one request must never end the server
            self._complaints.add("bootstrap server: a request failed", error)
            return refusal_response(
                500, Refusal(f"the bootstrap server failed on this request ({type(error).__name__})")
            )

    def _action(self, request: web.BaseRequest) -> Callable[[web.BaseRequest, bytes], web.Response]:
        action = self._actions.get((request.method, request.path))
        if action is None:
            methods = [method for method, path in self._actions if path == request.path]
            if methods:
                raise RequestRefused.because(405, f"{request.path} takes {' and '.join(methods)} only")
            known = ", ".join(sorted({path for _, path in self._actions}))
            raise RequestRefused.because(404, f"there is no such path; this is a bootstrap server and has {known}")
        return action

    def _put_route(self, request: web.BaseRequest, body: bytes) -> web.Response:
        self._routes.put(decode_registration(body), monotonic())
        return json_response(200, self._done)

    def _delete_route(self, request: web.BaseRequest, body: bytes) -> web.Response:
        goodbye = decode_json(body, Goodbye, "the body of DELETE /route")
        removed = self._routes.remove(goodbye.instance_id, monotonic())
        return json_response(200, msgspec.json.encode({"status": "ok", "removed": removed}))

    def _get_route(self, request: web.BaseRequest, body: bytes) -> web.Response:
        wanted = _wanted_rank(request)
        self._routes.expire(monotonic())
        if wanted is None:
            return self._whole_route()
        found = self._routes.rank(wanted)
        answer = {"rank_ip": found.rank_ip, "rank_port": found.rank_port, "instance_id": found.instance_id}
        return json_response(200, msgspec.json.encode(answer))

    def _whole_route(self) -> web.Response:
        if self._info is None or self._info[0] != self._routes.version:
            try:
                status, body = 200, msgspec.json.encode(self._routes.info(self._instance_id))
            except RequestRefused as refused:
                status, body = refused.status, msgspec.json.encode(refused.body)
            self._info = (self._routes.version, status, body)
        _, status, body = self._info
        self.refused += status != 200
        return json_response(status, body)

    def _register_dp_rank(self, request: web.BaseRequest, body: bytes) -> web.Response:
        message = decode_json(body, DpRankRegistration, "the body of POST /register_dp_rank")
        size = self._routes.dp_size
        if size is not None and message.dp_rank >= size:
            raise RequestRefused.because(400, f"dp_rank is {message.dp_rank}, must lie in 0..{size - 1}")
        self._rooms.put(message.bootstrap_room, message.dp_rank, monotonic())
        return json_response(200, self._done)

    def _query_dp_ranks(self, request: web.BaseRequest, body: bytes) -> web.Response:
        message = decode_json(body, DpRankQuery, "the body of POST /query_dp_ranks")
        return json_response(200, msgspec.json.encode(self._rooms.query(message.bootstrap_rooms, monotonic())))

    def _get_health(self, request: web.BaseRequest, body: bytes) -> web.Response:
        now = monotonic()
        self._routes.expire(now)
        return json_response(200, msgspec.json.encode(self._routes.health(self._instance_id, now)))


async def _read_json_body(request: web.BaseRequest) -> bytes:
    if request.content_type != "application/json":
        raise RequestRefused.because(
            415, f"the body must be JSON: send 'Content-Type: application/json', not {request.content_type[:80]!r}"
        )
    too_large = f"the body is larger than {MAX_BODY_BYTES} bytes"
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise RequestRefused.because(413, too_large)
    try:
        body = await asyncio.wait_for(_read_up_to(request, MAX_BODY_BYTES + 1), BODY_LIMIT_S)
    except asyncio.TimeoutError:
        raise RequestRefused.because(408, f"the body did not arrive within {BODY_LIMIT_S:g} s") from None
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise RequestRefused.because(400, f"the body could not be read: {str(error)[:200]}") from None
    if len(body) > MAX_BODY_BYTES:
        raise RequestRefused.because(413, too_large)
    return body


async def _read_up_to(request: web.BaseRequest, limit: int) -> bytes:
    body = bytearray()
    while len(body) < limit:
        part = await request.content.read(limit - len(body))
        if not part:
            break
        body += part
    return bytes(body)


def _wanted_rank(request: web.BaseRequest) -> Ranks | None:
    """The rank that the query asks for; None if all ids are -1 or absent."""
    numbers = {key: _query_number(request, key) for key in _QUERY_KEYS}
    if all(number == -1 for number in numbers.values()):
        return None
    absent = [key for key, number in numbers.items() if number == -1]
    if absent:
        raise RequestRefused.because(
            400, f"{', '.join(absent)} must be given too (or all of {', '.join(_QUERY_KEYS)} be -1)"
        )
    tp, pp, cp, dp = numbers.values()
    return (tp, pp, cp, dp)


def _query_number(request: web.BaseRequest, key: str) -> int:
    values = request.query.getall(key, ["-1"])
    if len(values) != 1 or not _NUMBER.fullmatch(values[0]) or not -1 <= int(values[0]) < MAX_RANKS:
        raise RequestRefused.because(
            400,
            f"{key} must be given once, as a number in -1..{MAX_RANKS - 1}, got {values[0][:40]!r} ({len(values)} times)",
        )
    return int(values[0])

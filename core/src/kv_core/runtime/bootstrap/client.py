"""A blocking client of a bootstrap server, for routers, the command line and an engine's own threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic

import msgspec
import requests
import urllib3

from kv_core.contract.failures import BootstrapError, InvalidConfig
from kv_core.runtime.bootstrap import answers
from kv_core.runtime.bootstrap.addresses import format_address, parse_address
from kv_core.runtime.bootstrap.errors import BootstrapConnectionError, ConnectionTrouble
from kv_core.runtime.bootstrap.routes import MAX_ROOMS_PER_QUERY, HealthReport, RouteInfo


class BootstrapClient:
    """Asks one bootstrap server; each call is one request on a connection of its own. Any thread.

    Every method blocks: up to ``timeout_s`` to connect, as long between two pieces of the answer, and twice that in
    all for the body. Raises ``BootstrapError`` (``BootstrapConnectionError`` if nothing answered) with a sentence, and
    the constructor ``InvalidConfig`` for an address that is none.
    """

    def __init__(self, addr: str, timeout_s: float = 2.0) -> None:
        if not timeout_s > 0:
            raise InvalidConfig(f"timeout_s is {timeout_s!r}, must be greater than 0")
        self._address = format_address(*parse_address(addr))
        self._timeout_s = timeout_s

    def route(self) -> RouteInfo:
        """The prefill instance's ranks; status 503 until every one is registered."""
        return answers.read_route(self._address, *self._ask("GET", "/route"))

    def health(self) -> HealthReport:
        """Who the server is, and how each rank is."""
        return answers.read_health(self._address, *self._ask("GET", "/health"))

    def register_dp_rank(self, room: int, dp_rank: int) -> None:
        """Say which data-parallel rank of the prefill instance serves a room."""
        body = {"bootstrap_room": room, "dp_rank": dp_rank}
        answers.read_done(self._address, "POST /register_dp_rank", *self._ask("POST", "/register_dp_rank", body))

    def query_dp_ranks(self, rooms: Iterable[int]) -> dict[int, int]:
        """The data-parallel ranks of those rooms that the server knows."""
        wanted = list(rooms)
        found: dict[int, int] = {}
        for begin in range(0, len(wanted), MAX_ROOMS_PER_QUERY):
            body = {"bootstrap_rooms": wanted[begin : begin + MAX_ROOMS_PER_QUERY]}
            found.update(answers.read_dp_ranks(self._address, *self._ask("POST", "/query_dp_ranks", body)))
        return found

    def _ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        what = f"{method} {path}"
        try:
            with requests.Session() as session:
                session.trust_env = False  # a proxy of the environment is not for peers inside the cluster
                with session.request(
                    method,
                    f"http://{self._address}{path}",
                    data=None if body is None else msgspec.json.encode(body),
                    headers={**answers.JSON_HEADERS, "Connection": "close"},
                    timeout=self._timeout_s,
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    return response.status_code, self._read(response, what)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._explained(error, what) from error

    def _read(self, response: requests.Response, what: str) -> bytes:
        deadline = monotonic() + 2 * self._timeout_s
        body = bytearray()
        for part in _parts(response):
            body += part
            if len(body) > answers.MAX_ANSWER_BYTES:
                raise answers.too_large(self._address, what, response.status_code)
            if monotonic() > deadline:
                raise requests.Timeout(f"the answer was not complete after {2 * self._timeout_s:g} s")
        return bytes(body)

    def _explained(self, error: Exception, what: str) -> BootstrapError:
        root: BaseException = error
        while (inner := root.__cause__ or root.__context__) is not None:
            root = inner
        if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
            trouble, seen = ConnectionTrouble.TIMEOUT, f"no answer came within {self._timeout_s:g} s"
        elif isinstance(root, ConnectionRefusedError):
            trouble, seen = ConnectionTrouble.REFUSED, "the connection was refused, nothing listens there"
        elif isinstance(root, ConnectionError):
            trouble, seen = ConnectionTrouble.CLOSED, "the connection was closed before an answer came"
        elif isinstance(root, OSError):
            trouble, seen = ConnectionTrouble.UNREACHABLE, f"it can't be reached ({root})"
        else:
            seen = f"what answers there does not speak HTTP as expected ({type(root).__name__}: {str(root)[:200]})"
            trouble = ConnectionTrouble.PROTOCOL
        return BootstrapConnectionError(
            f"the bootstrap server at {self._address} gave no answer to {what}: {seen}; "
            "check that the prefill instance runs, and host and port (bootstrap_addr)",
            trouble=trouble,
        )


def _parts(response: requests.Response) -> Iterator[bytes]:
    """The body in the pieces in which it arrives: ``read`` would wait for each to be full, however slowly it trickles in.

    urllib3 has ``read1`` since 2.1; with an older one a malicious server can hold the caller up for longer.
    """
    raw = response.raw
    read = getattr(raw, "read1", raw.read)
    while part := read(65_536, decode_content=False):
        yield part

"""The engine's return codes as sentences (``mooncake-transfer-engine/include/error.h``)."""

from __future__ import annotations

_MEANINGS = {
    -1: "the engine refused it or lost it, and does not say why (-1)",
    -2: "the engine has too many requests under way (-2)",
    -3: "the address is not registered (-3)",
    -6: "the engine knows no such device (-6)",
    -7: "the range overlaps one that is registered (-7)",
    -101: "the peer's host name could not be resolved (-101)",
    -102: "no connection to the peer's engine could be made (-102)",
    -103: "the peer's engine sent something that is no message (-103)",
    -104: "the peer's engine refused the handshake: the versions or protocols differ (-104)",
    -200: "the engine could not read or publish its metadata (-200)",
    -201: "the engine's endpoint failed (-201)",
    -202: "the engine's RDMA context failed: see ibv_devinfo and the limit on locked memory, ulimit -l (-202)",
    -302: "the engine could not get the memory that it needs (-302)",
}


def meaning(code: int) -> str:
    """One sentence for a return code other than 0."""
    return _MEANINGS.get(code, f"the engine answered with a code that is not in its documentation ({code})")

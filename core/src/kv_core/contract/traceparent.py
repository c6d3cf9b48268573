"""``traceparent``: the trace that a request belongs to, as W3C Trace Context writes it (https://www.w3.org/TR/trace-context/).

Core carries the text from one side of a room to the other and reads nothing into it.
"""

from __future__ import annotations

import re

LENGTH = 55
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def clean_traceparent(value: object) -> str | None:
    """The traceparent in the form of version 00 and 55 characters, or None for what is none.

    Version, trace id, parent id and flags, in lower-case hexadecimal; no id is all zeros. A newer version may say more after
    another dash: as the standard has it, what version 00 knows is read, and the rest is dropped.
    """
    if not isinstance(value, str) or not _FORM.match(value):
        return None
    if len(value) > LENGTH and (value.startswith("00") or value[LENGTH] != "-"):
        return None
    return f"00{value[2:LENGTH]}"

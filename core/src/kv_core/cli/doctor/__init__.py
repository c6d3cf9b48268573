"""``kv-core doctor``: what keeps pages from moving on this machine, or to that peer, and what to do about it.

Three layers. ``facts`` looks at the machine and changes nothing. The modules of the areas (``installed``, ``devices``, ``limits``,
``addresses``, ``host``, ``live``, ``peer``) are pure: facts in, findings out; each has its ``FindingKind``s, and ``catalog`` has
all of them. ``examine`` goes through the areas, ``report`` prints.

Whatever runs native code (loading a backend, a plugin's own checks, a driver, a transfer) happens in a process of its own
(``child``, told by ``jobs``, run by ``processes``), so that a crash or a hang there is a finding and not the doctor's end.
"""

from __future__ import annotations

"""``kv-core top``: what metrics endpoints say, as a live view. Which options there are: ``kv_core.cli.top_cmd``.

``readings``, ``window`` and ``view`` are pure: text in, numbers out. ``screen`` draws them, ``endpoints`` fetches, and
``command`` does both until it is ended.
"""

from __future__ import annotations

from kv_core.cli.top.command import TopSettings, run

__all__ = ["TopSettings", "run"]

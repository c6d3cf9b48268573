"""``python -m kv_core.cli`` is the ``kv-core`` command of this interpreter."""

from __future__ import annotations

from kv_core.cli import main

if __name__ == "__main__":
    main()

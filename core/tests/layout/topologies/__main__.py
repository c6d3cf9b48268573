"""``python -m core.tests.layout.topologies``."""

from core.tests.layout.topologies.whole import main

if __name__ == "__main__":
    raise SystemExit(main())

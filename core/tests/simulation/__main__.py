"""``python -m core.tests.simulation``."""

from core.tests.simulation.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

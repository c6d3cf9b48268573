"""``python -m core.tests.simulation``."""

from core.tests.simulation.cli import main

raise SystemExit(main())

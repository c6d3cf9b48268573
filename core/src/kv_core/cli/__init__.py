"""The ``kv-core`` command. Importing this loads nothing: each command imports what it needs when it runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``kv-core`` command; ends the process with the command's exit status."""
    # Imported here, so that the processes that the demo starts (modules of this package) do without it.
    from kv_core.cli.app import app  # noqa: PLC0415

    app(prog_name="kv-core")


__all__ = ["main"]

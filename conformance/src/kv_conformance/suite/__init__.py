"""The checks, one module for each area. Run by ``python -m kv_conformance``, never imported by a backend."""

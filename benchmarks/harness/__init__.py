"""What ``benchmarks.bench`` is made of: two processes, the ways of moving bytes that are compared, and what is measured.

``bench`` (one folder up) starts a prefill and a decode process (``ranks``, ``rank_main``) and runs the sections:
``goodput``, ``calls``, ``control`` and ``latency``. In both processes a *way* moves the same pages: kv-core over a
backend (``way_core``), that backend's transport alone (``way_transport``), a plain socket (``way_socket``). ``memory``
holds the pages, ``figures`` the arithmetic, ``tables`` what is printed.
"""

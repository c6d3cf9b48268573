"""What ``benchmarks.bench`` is made of: processes, the ways of moving bytes that are compared, and what is measured.

``bench`` (one folder up) starts a prefill and a decode process (``ranks``, ``rank_main``) and runs the sections:
``goodput``, ``sync``, ``frozen`` (more processes), ``rooms`` (calls and control plane) and ``latency``. In both processes
a *way* (``ways``) moves the same pages: kv-core over a backend (``way_core``), that backend's transport alone
(``way_transport``), the same on the engine's thread (``way_sync``), the engine itself (``way_nixl``, ``way_mooncake``), a
plain socket (``way_socket``). ``memory`` holds the pages, ``window`` and ``held`` say which rooms are in flight,
``figures`` is the arithmetic, ``tables`` what is printed.
"""

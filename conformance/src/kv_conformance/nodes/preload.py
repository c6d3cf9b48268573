"""Imported once by the process that node processes are forked from: what they all need, and the plugin under test. A plugin
loads no engine when it is imported; if it does, or can't be imported, its identity checks say so.
"""

import contextlib
import os
from importlib import import_module

VARIABLE = "KV_CONFORMANCE_PRELOAD"

for _name in (
    "kv_core.layout", "kv_core.registry", "kv_core.runtime", "kv_conformance.nodes.face_server",
    "kv_conformance.nodes.wire_server", *filter(None, os.environ.get(VARIABLE, "").split(",")),
):  # fmt: skip
    with contextlib.suppress(Exception, SystemExit):  # each node tries again, and tells
        import_module(_name)

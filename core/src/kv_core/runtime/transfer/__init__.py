"""The transfer engine: queues sharded by room, one owner thread for the transport, many transfers in flight.

``engine`` is the face. Behind it ``owner`` is the thread's loop, ``dispatch`` decides who is posted next and what
becomes of it, ``outstanding`` watches what the transport has taken, ``poster`` and ``blocking`` call ``submit`` as the
transport's threading model wants it, ``commands`` sees to peers, fences and digests, ``parking`` keeps chunks whose
source is not ready, ``digest``, ``verify`` and ``aux`` read and write host memory.
"""

from kv_core.runtime.transfer.aux import AuxDataCodec
from kv_core.runtime.transfer.engine import TransferEffect, TransferEngine
from kv_core.runtime.transfer.memory import HostMemory
from kv_core.runtime.transfer.sink import TransferSink

__all__ = ["AuxDataCodec", "HostMemory", "TransferEffect", "TransferEngine", "TransferSink"]

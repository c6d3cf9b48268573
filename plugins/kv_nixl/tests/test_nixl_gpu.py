"""CUDA memory on either side or both; auxiliary rows on the host. Runs where a CUDA device and a torch for it are."""

from __future__ import annotations

import pytest

from kv_core import KVArgs, MemoryKind, Pool, Role, TransferConfig
from kv_core.contract.transport import PeerKey, TransportContext
from kv_core.layout import MemoryLayout, make_batch, plan_transfer
from kv_nixl import NixlTransport
from plugins.kv_nixl.tests.nixl_ends import POISON, _u64, wait_until

pytestmark = pytest.mark.gpu


@pytest.fixture
def torch():
    found = pytest.importorskip("torch", reason="torch is not installed: nothing here can allocate CUDA memory")
    if not found.cuda.is_available():
        pytest.skip("no CUDA device that torch can use")
    return found


def side(torch, role, device, name, value):
    """A transport with pages on a device ("cpu" or "cuda:0") and auxiliary rows on the host."""
    pages = torch.full((4, 32, 65_536), POISON, dtype=torch.uint8, device=device)
    rows = torch.full((1, 4, 64), POISON, dtype=torch.uint8)
    if value:
        pages.random_(1, 200)
        rows.random_(1, 200)
    kind = MemoryKind.CUDA if pages.is_cuda else MemoryKind.HOST
    kv = Pool.uniform("kv", [buffer.data_ptr() for buffer in pages], 65_536, 32, kind=kind)
    args = KVArgs(kv, Pool.uniform("aux", [rows.data_ptr()], 64, 4))
    if pages.is_cuda:
        torch.cuda.synchronize()
    transport = NixlTransport(TransportContext(role, name, TransferConfig()))
    layout = MemoryLayout.of(args)
    transport.register_memory(layout.regions())
    return transport, layout, args, pages, rows


@pytest.mark.parametrize(("here", "there"), [("cuda:0", "cuda:0"), ("cuda:0", "cpu"), ("cpu", "cuda:0")])
def test_pages_of_gpu_memory_and_rows_of_host_memory(torch, here, there):
    source, layout, args, pages, rows = side(torch, Role.PREFILL, here, f"source-{here}-{there}", value=True)
    target, other, _, landed, row = side(torch, Role.DECODE, there, f"target-{here}-{there}", value=False)
    try:
        key = PeerKey(f"target-{here}-{there}", 1)
        source.add_peer(key, target.local_descriptor())
        plan = plan_transfer(layout, other, local_topology=args.topology, remote_topology=args.topology)
        prepared = source.prepare(key, plan)
        batch = make_batch(plan, kv=(_u64([3, 9, 10]), _u64([7, 0, 1]), None), aux=(2, 1))
        transfer = source.submit(prepared, batch)

        def record():
            found = list(source.progress([transfer]))
            if not found:
                source.wait(0.05)
            return found

        (ended,) = wait_until(record)
        assert ended.state.value == "done", ended.error
        if landed.is_cuda:
            torch.cuda.synchronize()
        assert torch.equal(landed[:, [7, 0, 1]].cpu(), pages[:, [3, 9, 10]].cpu())
        assert bool((landed[:, 2:7] == POISON).all())
        assert torch.equal(row[:, 1], rows[:, 2])
        source.release(transfer)
    finally:
        source.close()
        target.close()

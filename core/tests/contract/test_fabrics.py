"""Which words of a fabric's name meet what ``require_transport`` asks for."""

from __future__ import annotations

import pytest

from kv_core import TransferConfig
from kv_core.contract.fabrics import meets, required_fabrics


@pytest.mark.parametrize(
    ("required", "fabric", "met"),
    [
        ("rdma", "rdma mlx5_0", True),
        ("RDMA", "ucx rdma", True),
        ("rdma", "tcp", False),
        ("rdma", "ucx", False),
        ("rdma", "rdmacm", False),  # a word, not a part of one
        ("cma", "UCX CMA", True),
        ("ucx cma", "ucx cma", True),  # all words
        ("ucx cma", "ucx tcp", False),
        ("mlx5_1", "rdma mlx5_0,mlx5_1", True),
        (("rdma", "tcp"), "tcp", True),  # one of them
        ("rdma", "rdma or xgmi", False),  # which may be either
        (("rdma", "xgmi"), "rdma or xgmi", True),
        ("tcp", "", False),
    ],
)
def test_words(required: str, fabric: str, met: bool):
    assert meets(required_fabrics(required), fabric) is met


def test_a_config_keeps_what_was_meant():
    assert TransferConfig().require_transport is None
    assert TransferConfig(require_transport=" RDMA ").require_transport == ("rdma",)
    assert TransferConfig(require_transport=["UCX  cma", "tcp"]).require_transport == ("ucx cma", "tcp")

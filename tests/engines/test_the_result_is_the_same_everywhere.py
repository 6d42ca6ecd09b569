"""The same bits from every engine setting: block sizes, threads, another device's order of summation."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bot.engines import deltas, schedule, streaming
from bot.numerics.rounder import Arithmetic
from tests.factory import save_adapter, save_base
from tests.steps import merge_folders


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A base, a rank-32 adapter, and the sha256 of their merge."""
    folder = tmp_path_factory.mktemp("same")
    base = save_base("llama", folder / "base")
    adapter = save_adapter(base, "llama", folder / "adapter", r=32, use_dora=False)
    return base, adapter, sha256(merge_folders(base, adapter, folder / "merged"))


@pytest.fixture(scope="module")
def along_columns(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The same of a DoRA whose norms run along columns: every tensor is read twice."""
    folder = tmp_path_factory.mktemp("columns")
    base = save_base("gpt2", folder / "base")
    adapter = save_adapter(base, "gpt2", folder / "adapter", use_dora=True)
    return base, adapter, sha256(merge_folders(base, adapter, folder / "merged"))


@pytest.mark.parametrize("block", [1, 64, 1000, 1 << 22])
def test_block_sizes_do_not_show(inputs, block: int, tmp_path: Path, monkeypatch) -> None:
    base, adapter, expected = inputs
    monkeypatch.setattr(schedule, "BLOCK", block)
    assert sha256(merge_folders(base, adapter, tmp_path / "merged")) == expected


@pytest.mark.parametrize(("block", "first_pass"), [(64, 64), (1000, 300), (1 << 22, 1000), (1000, 1 << 22)])
def test_block_sizes_of_either_pass_do_not_show(
    along_columns, block: int, first_pass: int, tmp_path, monkeypatch
) -> None:
    base, adapter, expected = along_columns
    monkeypatch.setattr(schedule, "BLOCK", block)
    monkeypatch.setattr(deltas, "BLOCK", first_pass)
    assert sha256(merge_folders(base, adapter, tmp_path / "merged")) == expected


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_threads_do_not_show(inputs, threads: str, tmp_path: Path) -> None:
    """BLAS's own threads, each number in a process of its own."""
    base, adapter, expected = inputs
    command = [sys.executable, "-m", "bot", "merge", str(adapter), "--base", str(base), "--output", str(tmp_path / "m")]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    subprocess.run([*command, "--verify", "files", "--quiet"], check=True, env=environment)
    assert sha256(tmp_path / "m") == expected


def test_torchs_order_of_summation_does_not_show(inputs, tmp_path: Path, monkeypatch) -> None:
    written = streaming.write_shard
    from bot.engines.cuda_product import CudaProduct

    def elsewhere(shard, ops, inputs, target, moved, later=None, arithmetic=None, *rest):
        return written(shard, ops, inputs, target, moved, later, Arithmetic(multiply=CudaProduct("cpu")), *rest)

    monkeypatch.setattr(streaming, "write_shard", elsewhere)
    base, adapter, expected = inputs
    assert sha256(merge_folders(base, adapter, tmp_path / "merged")) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_cuda_gives_the_same_bits(inputs, tmp_path: Path) -> None:
    from bot.records import Options

    base, adapter, expected = inputs
    assert sha256(merge_folders(base, adapter, tmp_path / "merged", Options(device="cuda"))) == expected

"""On another device than the CPU: the checkpoint's dtype, everything there, sums in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import references
import tiny_models
import torch

from kquant_cli.calibration import collect, column_energy
from kquant_cli.calibration.lazy_model import load_lazy_model
from kquant_cli.checkpoint import open_checkpoint


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "mixtral"])
def test_elsewhere_the_checkpoints_dtype_is_kept_and_all_is_read_onto_the_device(arch: str, tmp_path: Path):
    folder = tiny_models.make(arch, tmp_path / arch, save_dtype=torch.bfloat16)
    device = torch.device("meta")  # a device that any machine has; it only knows shapes
    model = load_lazy_model(open_checkpoint(folder), device)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    if arch == "bert":  # the others look at the values of tokens or positions
        with torch.no_grad():
            logits = model(input_ids=tiny_models.tokens().to(device)).logits
        assert logits.device.type == "meta" and logits.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert"])
def test_a_gpu_gives_what_the_cpu_gives(arch: str, tmp_path: Path):
    folder = tiny_models.make(arch, tmp_path / arch, save_dtype=torch.bfloat16)
    expected = references.measure(folder)
    checkpoint, names = open_checkpoint(folder), list(references.by_member(expected))
    found = collect(checkpoint, names, "random", seed=references.SEED, device="cuda", tokens=1024)
    assert [group.members for group in found.groups] == [group.members for group in expected.groups]
    for ours, theirs in zip(found.groups, expected.groups, strict=True):
        assert ours.second_moments.device.type == "cpu" and ours.second_moments.dtype == torch.float64
        torch.testing.assert_close(ours.second_moments, theirs.second_moments, rtol=0.1, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sums_the_columns_energies_in_float64_as_the_cpu_does():
    weights = [torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).half() for rows in (70_000, 5)]
    found = column_energy(weight.cuda() for weight in weights)
    assert (found.device.type, found.dtype) == ("cuda", torch.float64)
    torch.testing.assert_close(found.cpu(), column_energy(weights), rtol=1e-12, atol=0)

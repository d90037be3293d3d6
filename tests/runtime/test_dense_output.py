"""Many tokens with coupled bases on the output side: decoded along columns and rows, against decode() in float64."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from output_side import output_side
from test_triton_product import needs_triton, run_alone

from kquant_cli.bases import CoupledBases
from kquant_cli.packing import pack
from kquant_cli.runtime import KashinLinear
from kquant_cli.runtime.products import Packed, backend_for, dense, dense_output, trial

TOLERANCES = {torch.float16: 1e-3, torch.bfloat16: 5e-3}  # of float16 inside; the interpreter cuts bfloat16 off


def check(matrix, dtype=torch.float16, device="cpu"):
    """The decoded weight against its definition."""
    layout, expected = matrix.layout, matrix.decode(torch.float64)
    left = CoupledBases.of(layout.frame.left_u, layout.frame.left_v)
    right = CoupledBases.beginning_with(layout.frame.right_u)
    packed = Packed(pack(matrix.codes, layout.levels).to(device), matrix.codebook.to(device), layout.shape[1])
    parts = (matrix.scale, matrix.col_scale, matrix.channel_scale)
    scales = dense.Scales(*(None if part is None else part.to(device) for part in parts))
    found = dense_output.decode(left, right, packed, dtype, scales).double().cpu()
    assert float((found - expected).norm() / expected.norm()) < TOLERANCES[dtype], (layout, dtype)
    assert float((found - expected).abs().max() / expected.abs().max()) < 4 * TOLERANCES[dtype]


def check_all(device="cpu"):
    """Words of every kind; sides that are padded; columns that fill no block; every part there and missing."""
    for levels in (4, 8, 3, 24):
        check(output_side(levels, 48, 60, right=False), device=device)
    check(output_side(16, 96, 80), torch.bfloat16, device)
    check(output_side(16, 32, 48, channel_scale=True), device=device)
    check(output_side(8, 48, 48, row_scale=False, stored=True), device=device)
    check(output_side(200, 176, 20, False, True, True, stored=True), torch.bfloat16, device)


def check_layers():
    """Layers of bfloat16 on a CPU, interpreted: fewer tokens by the product that keeps the sums apart, more decoded."""
    decoded, real = [], dense_output.decode
    for right in (True, False):
        matrix = output_side(16, 48, 64, right, channel_scale=True)
        bias = torch.nn.Parameter(torch.linspace(-1, 1, 48).bfloat16(), requires_grad=False)
        layer, weight = KashinLinear.of(matrix, bias), matrix.decode(torch.float64)
        assert backend_for(Packed(layer.weight_codes, layer.codebook, 64), torch.ones(9, 64), True) == "triton"
        decoded.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dense_output, "decode", lambda *given: decoded.append(given[2].columns) or real(*given))
            for tokens in (9, dense_output.DENSE_TOKENS - 1, dense_output.DENSE_TOKENS):
                x = torch.randn(2, tokens, 64)[:1].bfloat16()
                y, expected = layer(x), x.double() @ weight.T + layer.bias.double()
                assert (y.shape, y.dtype) == (expected.shape, torch.bfloat16)
                assert float((y.double() - expected).norm() / expected.norm()) < 0.01
            assert decoded == ([64] if right else [dense_output.TRIAL_COLUMNS, 64])
        assert trial.switched_off() == []


INTERPRETED = """
from test_dense_output import *
check_all()
check_layers()
print("done")
"""


@needs_triton
def test_the_kernels_as_they_are_interpreted():
    run_alone(INTERPRETED, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or not find_spec("triton"), reason="needs a CUDA device and triton")
def test_on_a_gpu_the_weight_is_the_definitions():
    check_all("cuda")
    check(output_side(16, 4096, 1024), torch.bfloat16, "cuda")
    check(output_side(8, 1024, 14336), torch.float16, "cuda")
    check(output_side(4, 11008, 300, right=False), torch.bfloat16, "cuda")


@pytest.mark.parametrize("wrong", ["columns", "rows"])
def test_a_kernel_that_fails_its_trial_is_off(monkeypatch, wrong):
    """The rows have a trial of their own."""
    monkeypatch.setattr(trial, "_verdicts", {})
    monkeypatch.setattr(dense_output, "find_spec", lambda name: name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for part in ("columns", "rows"):
        monkeypatch.setattr(dense_output, f"_trial_of_{part}", lambda *_, off=part == wrong: 1.0 if off else 0.0)
    packed = Packed(torch.zeros(256, 96, dtype=torch.uint8), torch.ones(16, 2), 192)
    x, left, right = torch.zeros(300, 192).bfloat16(), CoupledBases(256, 0), CoupledBases(192, 0)
    assert not dense_output.supports(left, right, packed, x, dense.Scales())
    assert dense_output.supports(left, None, packed, x, dense.Scales()) == (wrong == "rows")
    assert {off.split()[0] for off in trial.switched_off()} == {
        "decode_columns" if wrong == "columns" else "transform_rows"
    }


def test_what_is_not_decoded(monkeypatch):
    monkeypatch.setattr(dense_output, "passed", lambda *_: True)
    monkeypatch.setattr(dense_output, "find_spec", lambda name: name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    packed = Packed(torch.zeros(256, 96, dtype=torch.uint8), torch.ones(16, 2), 192)
    x, left, right, none = torch.zeros(300, 192).bfloat16(), CoupledBases(256, 0), CoupledBases(192, 0), dense.Scales()
    assert dense_output.supports(left, right, packed, x, none)
    assert not dense_output.supports(left, right, packed, x.float(), none)
    assert not dense_output.supports(CoupledBases(28672, 0), right, packed, x, none)
    assert not dense_output.supports(left, CoupledBases(999, 0), packed, x, none)


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kquant_cli.runtime.products import triton_dense_output as kernels
from kquant_cli.runtime.products.triton_dense import transform_rows
from kquant_cli.runtime.products.dense_output import BLOCK, MOST_WARPS
P, Q, padded = 128, 86, 128  # 11008
table, scaled = {"levels": 16, "table": 16}, {f"{part}_scaled": True for part in ("row", "column", "channel")}
inner, outer = {"Q": Q, "padded": padded, "block": BLOCK}, {"P": P, "Q": Q, "block": BLOCK}
fixed = {
    kernels.first_pass: {**table, **inner, "bits": 4, "size": 1},
    kernels.second_pass: {**table, **outer, "bits": 4, "size": 1},
    kernels.third_pass: {**table, **inner, **scaled, "last": True},
    transform_rows: {**table, **scaled, "P": P, "Q": Q, "padded": padded},
}
types = dict.fromkeys(("first_ptr", "second_ptr"), "*i8") | {"codes_ptr": "*u8", "powers_ptr": "*i64", "root": "fp32"}
types |= dict.fromkeys(("hadamard_ptr", "inner_ptr", "row_scale_ptr", "column_scale_ptr", "channel_scale_ptr"), "*fp16")
types |= {"codebook_ptr": "*fp32", "dense_ptr": "*fp16", "out_ptr": "*bf16"}
for kernel, constants in fixed.items():
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    aligned = [i for i, n in enumerate(names) if n.endswith("_ptr") or n in ("words", "columns")]
    divisible = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, divisible)
    options = {"num_warps": MOST_WARPS, "num_stages": 1}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.metadata.shared <= 160 * 1024, compiled.metadata.shared
    assert "wgmma.mma_async" in compiled.asm["ptx"]
print("done")
"""


@needs_triton
def test_the_kernels_compile_for_an_h100(tmp_path):
    """The longest sides, in the shared memory of an A100 too."""
    import triton

    if not hasattr(triton.compiler, "ASTSource") or not (Path(triton.__file__).parent / "backends/nvidia").exists():
        pytest.skip("this Triton compiles for no GPU that is not there")
    run_alone(COMPILED, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))

"""Many tokens by a decoded weight: the kernel against float64, when it is taken, and what happens where it fails."""

import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from test_triton_product import needs_triton, run_alone

from kquant_cli.bases import CoupledBases, basis_for
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.packing import MAX_LEVELS, pack, word
from kquant_cli.runtime import KashinLinear
from kquant_cli.runtime.products import Packed, dense, trial

LEVELS = tuple({word(levels): levels for levels in range(2, MAX_LEVELS + 1)}.values())  # of every kind of word
TOLERANCES = {torch.float16: 1e-3, torch.bfloat16: 5e-3}  # of float16 inside; the interpreter cuts bfloat16 off


def check(levels, rows, columns, dtype=torch.float16, device="cpu", scales=True, factor=1.0):
    """Decoded rows against their definition."""
    draw = torch.Generator().manual_seed(levels + columns)
    codes = torch.randint(levels, (rows, columns), generator=draw, dtype=torch.uint8)
    book = torch.randn(levels, 2, generator=draw) * factor
    pair = CoupledBases(columns, 7)
    row, column, channel = ((torch.rand(n, generator=draw) + 0.5).half() for n in (rows, columns, columns))
    row = row.unsqueeze(1)
    u, v = book.double()[codes.int()].unbind(-1)
    if scales:
        u, v = u * column.double(), v * column.double()
    expected = basis_for(pair.first).apply(u) + basis_for(pair.second).apply(v)
    if scales:
        expected *= row.double() / channel.double()
    packed = Packed(pack(codes, levels).to(device), book.to(device), columns)
    given = dense.Scales(*(scale.to(device) for scale in (row, column, channel)) if scales else ())
    found = dense.decode(pair, packed, dtype, given).double().cpu()
    assert float((found - expected).norm() / expected.norm()) < TOLERANCES[dtype], (levels, columns, dtype)
    assert float((found - expected).abs().max() / expected.abs().max()) < 4 * TOLERANCES[dtype]


def check_all(device="cpu", levels=LEVELS):
    for count in levels:
        check(count, 3, 192, device=device)  # (16, 12): a padded side
    for columns in (256, 896, 1408, 4096):
        check(16, 2, columns, torch.bfloat16, device)
    check(16, 5, 256, device=device, scales=False)
    check(16, 5, 256, torch.bfloat16, device=device, scales=False, factor=1e-20)  # out of float16's range
    check(5, 5, 512, torch.bfloat16, device=device, scales=False, factor=1e20)


def layer(levels=16):
    """An annealed layer in 16-bit, and its weight."""
    weight = torch.randn(24, 256, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.5, 2, 256)
    encoded = encode(weight, EncoderConfig(levels=levels), channel_scale=scale)
    bias = torch.nn.Parameter(torch.linspace(-1, 1, 24).bfloat16(), requires_grad=False)
    return KashinLinear.of(encoded, bias), encoded.decode(torch.float64)


def counted(monkeypatch):
    """The shapes that are decoded, from now on."""
    decoded, decode = [], dense.decode

    def noted(pair, packed, *arguments):
        decoded.append(packed.rows)
        return decode(pair, packed, *arguments)

    monkeypatch.setattr(dense, "decode", noted)
    return decoded


def check_layers():
    """Layers of bfloat16 on a CPU, interpreted: from DENSE_TOKENS on the weight is decoded, after one trial."""
    with pytest.MonkeyPatch.context() as patch:
        made, weight = layer()
        decoded = counted(patch)
        for tokens, rows in ((dense.DENSE_TOKENS - 1, []), (dense.DENSE_TOKENS, [dense.TRIAL_ROWS, 24]), (200, [24])):
            x = torch.randn(2, tokens, 256)[:1].bfloat16()
            decoded.clear()
            y = made(x)
            assert decoded == rows
            expected = x.double() @ weight.T + made.bias.double()
            assert (y.shape, y.dtype) == (expected.shape, torch.bfloat16)
            assert float((y.double() - expected).norm() / expected.norm()) < 0.01
        decoded.clear()
        inputs = x.requires_grad_()
        made(inputs).sum().backward()
        assert inputs.grad is not None and decoded == []
        patch.setenv("KQUANT_BACKEND", "reference")
        made(x.detach())
        assert decoded == []
        patch.delenv("KQUANT_BACKEND")
        operator = torch.ops.kquant.product
        arguments = (x.detach(), made.weight_codes, made.own("weight_codebook"), None, None, made.weight_channel_scale)
        y = operator(*arguments, made.layout_key) * made.weight_scale.T + made.bias
        assert decoded == [dense.TRIAL_ROWS, 24]  # another format: rows without a scale
        assert float((y.double() - expected).norm() / expected.norm()) < 0.01


INTERPRETED = """
from test_dense_product import *
check_all()
check_layers()
print("done")
"""


@needs_triton
def test_the_kernel_as_it_is_interpreted():
    run_alone(INTERPRETED, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or not find_spec("triton"), reason="needs a CUDA device and triton")
def test_on_a_gpu_the_rows_are_the_definitions():
    check_all("cuda")
    check(16, 300, 11008, torch.bfloat16, "cuda")
    check(8, 300, 14336, torch.float16, "cuda")


@pytest.mark.parametrize(
    ("size", "expected"),
    [(256, (16, 16)), (4096, (64, 64)), (11008, (128, 86)), (768, (32, 24)), (8, None), (28672, None), (999, None)],
)
def test_the_sides_of_a_row(size, expected):
    """Powers of two on the left; 28672 = 256 * 112 has too long a side, and an odd size none."""
    assert dense.sides(size) == expected


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_a_kernel_that_fails_its_trial_is_off_and_said_once(monkeypatch, caplog, fault):
    monkeypatch.setattr(trial, "_verdicts", {})
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dense, "find_spec", lambda name: name)

    def decode(pair, packed, dtype, scales):
        if fault == "broken":
            raise RuntimeError("no such\ninstruction")
        return torch.ones(packed.rows, packed.columns, dtype=dtype)

    monkeypatch.setattr(dense, "decode", decode)
    packed = Packed(torch.zeros(4, 128, dtype=torch.uint8), torch.ones(16, 2), 256)
    x = torch.zeros(200, 256, dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING, "kquant_cli"):
        assert [dense.supports(CoupledBases(256, 0), packed, x, dense.Scales()) for _ in range(3)] == [False] * 3
    (record,) = caplog.records
    assert "decode_rows" in record.message
    assert ("RuntimeError: no such instruction" if fault == "broken" else "relative error") in record.message


def test_what_is_not_decoded(monkeypatch):
    monkeypatch.setattr(trial, "_verdicts", {})
    monkeypatch.setattr(dense, "passed", lambda *_: True)
    monkeypatch.setattr(dense, "find_spec", lambda name: name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    packed = Packed(torch.zeros(4, 128, dtype=torch.uint8), torch.ones(16, 2), 256)
    x, pair = torch.zeros(200, 256, dtype=torch.bfloat16), CoupledBases(256, 0)
    none = dense.Scales()
    assert dense.supports(pair, packed, x, none)
    assert not dense.supports(pair, packed, x.float(), none)
    assert not dense.supports(CoupledBases(28672, 0), packed, x, none)
    assert not dense.supports(pair, replace(packed, codebook=torch.ones(16, 1)), x, none)
    assert not dense.supports(pair, replace(packed, group_scale=torch.ones(4, 2), group=128), x, none)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not dense.supports(pair, packed, x, none)


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kquant_cli.runtime.products.triton_dense import decode_rows
P, Q, padded = 128, 86, 128  # 11008
fixed = {"levels": 16, "table": 16, "bits": 4, "digits": 2, "size": 1, "P": P, "Q": Q, "padded": padded}
fixed |= {"row_scaled": True, "column_scaled": True, "channel_scaled": True}
types = dict.fromkeys(("codes_ptr", "first_ptr", "second_ptr"), "*i8") | {"powers_ptr": "*i64", "root": "fp32"}
types |= dict.fromkeys(("hadamard_ptr", "inner_ptr", "row_scale_ptr", "column_scale_ptr", "channel_scale_ptr"), "*fp16")
types |= {"codebook_ptr": "*fp32", "out_ptr": "*bf16"}
names = decode_rows.arg_names
signature = {n: "constexpr" if n in fixed else types.get(n, "i32") for n in names}
divisible = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.endswith("_ptr") or n == "words"}
source = ASTSource(decode_rows, signature, {(names.index(n),): value for n, value in fixed.items()}, divisible)
options = {"num_warps": 8, "num_stages": 1}
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
assert compiled.metadata.shared <= 160 * 1024, compiled.metadata.shared
assert "wgmma.mma_async" in compiled.asm["ptx"]
print("done")
"""


@needs_triton
def test_the_kernel_compiles_for_an_h100(tmp_path):
    """The longest sides, in the shared memory of an A100 too."""
    import triton

    if not hasattr(triton.compiler, "ASTSource") or not (Path(triton.__file__).parent / "backends/nvidia").exists():
        pytest.skip("this Triton compiles for no GPU that is not there")
    run_alone(COMPILED, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))

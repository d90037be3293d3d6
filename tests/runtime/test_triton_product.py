"""The product's Triton kernels against the reference in float64: interpreted, compiled for an H100, and on a GPU."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

from kquant_cli.packing import MAX_LEVELS, pack, word
from kquant_cli.runtime.products import BACKENDS, Packed, backend_for, product, reference

LEVELS = tuple({word(levels): levels for levels in range(2, MAX_LEVELS + 1)}.values())  # of every kind of word
TOLERANCES = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}  # codebooks and results are rounded
CUT_OFF = 2  # times as far: the interpreter cuts bfloat16 off, where a GPU rounds
TRITON = Version(import_module("triton").__version__) if find_spec("triton") else Version("0")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def case(levels, rows, columns, tokens, dtype=torch.float32, terms=2, group=0, device="cpu"):
    """A packed matrix and activations a and b (None where the codebook has one column)."""
    draw = torch.Generator().manual_seed(levels + tokens)
    codes = torch.randint(levels, (rows, columns), generator=draw, dtype=torch.uint8)
    codebook = torch.randn(levels, terms, generator=draw)
    codebook[0] = 0.0  # an entry of zeros must stay one
    scale = torch.rand(rows, -(-columns // group), generator=draw) + 0.5 if group else None
    a, b = torch.randn(2, tokens, columns, generator=draw).to(device, dtype)
    packed = Packed(pack(codes, levels).to(device), codebook.to(device), columns, scale, group)
    if scale is not None:
        packed = Packed(packed.codes, packed.codebook, columns, scale.to(device), group)
    return packed, a, b if terms == 2 else None


def check(packed, a, b, split):
    """The result's shape and dtype, and its distance from the reference in float64."""
    assert backend_for(packed, a, split) == "triton"
    wide = None if b is None else b.double()
    results, expected = product(packed, a, b, split), reference.product(packed, a.double(), wide, split)
    for result, numbers in zip(results, expected, strict=True):
        assert (result is None) == (numbers is None)
        if result is not None:
            assert (result.shape, result.dtype) == (numbers.shape, a.dtype)
            error = float((result.double() - numbers).norm() / numbers.norm())
            cut_off = a.dtype == torch.bfloat16 and not a.is_cuda
            assert error < TOLERANCES[a.dtype] * (CUT_OFF if cut_off else 1), (
                packed.levels,
                a.shape,
                packed.rows,
                a.dtype,
                split,
                error,
            )


def check_few(dtype, device="cpu", words=LEVELS):
    """The kernel for up to four tokens: words, parts, one column and groups, sizes with and without tails."""
    for levels in words:
        check(*case(levels, 37, 203, 1, dtype, device=device), split=levels % 2 == 1)
        check(*case(levels, 9, 130, 3, dtype, device=device), split=levels % 2 == 0)
    check(*case(16, 16, 1536, 1, dtype, device=device), split=False)  # cut into parts
    check(*case(8, 16, 3072, 1, dtype, device=device), split=False)
    check(*case(16, 24, 640, 2, dtype, device=device), split=True)
    check(*case(16, 24, 640, 4, dtype, device=device), split=True)
    check_books_and_groups(1, dtype, device)
    for rows, columns in ((1, 1), (1, 700), (300, 1)):
        check(*case(16, rows, columns, 1, dtype, device=device), split=True)


def check_many(dtype, device="cpu", words=LEVELS):
    """The kernel for more tokens, likewise."""
    for levels in words:
        check(*case(levels, 70, 333, 20, dtype, device=device), split=levels % 2 == 0)
    check(*case(16, 24, 4096, 5, dtype, device=device), split=True)
    check(*case(8, 130, 161, 64, dtype, device=device), split=False)
    check(*case(4, 65, 64, 140, dtype, device=device), split=True)
    check_books_and_groups(6, dtype, device)
    for rows, columns in ((1, 1), (1, 700), (300, 1)):
        check(*case(3, rows, columns, 7, dtype, device=device), split=True)


def check_books_and_groups(tokens, dtype, device):
    check(*case(16, 20, 200, tokens, dtype, terms=1, device=device), split=False)
    check(*case(16, 20, 200, tokens, dtype, terms=1, device=device), split=True)
    check(*case(15, 20, 200, tokens, dtype, terms=1, group=64, device=device), split=False)
    check(*case(5, 20, 200, tokens, dtype, terms=2, group=24, device=device), split=True)


def run_alone(code, **variables):
    """In a process of its own: at import Triton decides whether it compiles or interprets."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **variables, "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "done", run.stderr


INTERPRETED = """
from test_triton_product import *
check_few(torch.float32)
check_many(torch.float32)
check_many(torch.bfloat16, words=(2, 5, 16, 256))  # of most digits, of several chunks, of two digits and of one
for dtype in (torch.bfloat16, torch.float16):
    check(*case(16, 16, 1536, 1, dtype), split=False)
    check(*case(3, 9, 130, 3, dtype), split=True)
check(*case(16, 24, 4096, 5, torch.float16), split=True)
check(*case(8, 70, 333, 20, torch.float16), split=False)
print("done")
"""


@needs_triton
@pytest.mark.skipif(
    TRITON.release < (3, 7) and Version(np.__version__).release >= (2, 4),
    reason="the interpreter of Triton before 3.7 counts loops in a way that numpy from 2.4 on refuses",
)
def test_the_kernels_as_they_are_interpreted():
    """What a dtype changes: the tiles of the kernel for many tokens, by its width, and that bfloat16 is widened there.

    So few tokens run in float32 and many in bfloat16 too; the rest shows that results are rounded and stored.
    """
    run_alone(INTERPRETED, TRITON_INTERPRET="1")


ENTRIES = """
import torch, triton, triton.language as tl
from kquant_cli.runtime.products.triton_tiles import float_and_half
@triton.jit
def entries(u_ptr, v_ptr, out_ptr, count: tl.constexpr):
    at = tl.arange(0, count)
    tl.store(out_ptr + at, float_and_half(tl.load(u_ptr + at), tl.load(v_ptr + at)))
u = torch.randn(1024).bfloat16().float()
v = torch.randn(1024) * 10.0 ** torch.randint(-6, 6, (1024,))
v[:4] = torch.tensor([0.0, -0.0, 1e-42, -1e-42])
out = torch.empty(1024, dtype=torch.int32)
entries[(1,)](u, v, out, 1024)
assert torch.equal((out << 16).view(torch.float32), u)
half = 2.0**-8 * v.abs() + 1e-38
assert ((out.view(torch.float32) - v).abs() <= half).all()
print("done")
"""


@needs_triton
def test_an_entry_holds_u_exactly_and_v_to_half_a_unit_of_bfloat16():
    """v is no worse than rounded by itself, although u's bits lie behind it; zero stays zero, but for 1e-38."""
    run_alone(ENTRIES, TRITON_INTERPRET="1")


COMPILED = """
from kquant_cli.runtime.products.gpu import constants, plan
from kquant_cli.runtime.products.triton_kernels import gemm, gemv
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
for levels, tokens, terms, dtype in ((16, 1, 2, "bf16"), (8, 4, 3, "fp32"), (16, 300, 2, "bf16"), (8, 20, 3, "fp32")):
    launch = plan(4096, 11008, levels, tokens, terms, 4 if dtype == "fp32" else 2, 132)
    kernel = gemm if launch.block_tokens else gemv
    fixed = constants(levels, terms > 1, terms == 3, 0, tokens, launch)
    fixed |= {"widen": False} if launch.block_tokens else {}
    types = {"codes_ptr": "*u8", "a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "partial_ptr": "*fp32"}
    types |= {"codebook_ptr": "*fp32", "scale_ptr": "*fp32"}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in fixed else types.get(n, "i32") for n in names}
    aligned = [i for i, n in enumerate(names) if n in types or n in ("columns", "words")]
    divisible = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in fixed.items()}, divisible)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.metadata.shared <= 96 * 1024, (levels, tokens, dtype, compiled.metadata.shared)
    if kernel is gemv:  # warps shuffle: no table goes through memory
        assert "shfl.sync.idx" in compiled.asm["ptx"]
    elif dtype == "bf16":
        assert "wgmma.mma_async" in compiled.asm["ptx"]
print("done")
"""


@needs_triton
def test_the_kernels_compile_for_an_h100(tmp_path):
    """Within the shared memory that every GPU of the last years has; the interpreter knows no such limits."""
    import triton

    if not hasattr(triton.compiler, "ASTSource") or not (Path(triton.__file__).parent / "backends/nvidia").exists():
        pytest.skip("this Triton compiles for no GPU that is not there")
    run_alone(COMPILED, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


def test_what_the_kernels_do_not_compute_the_reference_does(monkeypatch):
    packed, a, _ = case(16, 8, 32, 2)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("KQUANT_BACKEND", raising=False)
    assert next(iter(BACKENDS)) == "triton"
    assert backend_for(packed, a, True) != "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend_for(packed, a.double(), True) == "reference"
    assert backend_for(packed, a[:0], True) != "triton"
    if find_spec("triton"):
        assert backend_for(packed, a, True) == "triton"


@pytest.mark.gpu
@gpu
@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_on_a_gpu_the_product_is_the_references(dtype):
    check_few(dtype, "cuda")
    check_many(dtype, "cuda")
    for levels in (4, 8, 16, 256, 5):
        for tokens in (1, 4, 16, 300):
            check(*case(levels, 1000, 4160, tokens, dtype, device="cuda"), split=tokens == 4)


@pytest.mark.gpu
@gpu
@needs_triton
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_a_cuda_graph_replays_the_product_bit_for_bit(tokens):
    packed, a, b = case(16, 1024, 4096, tokens, torch.bfloat16, device="cuda")
    product(packed, a, b, True)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = product(packed, a, b, True)
    for seed in (1, 2):
        torch.manual_seed(seed)
        a.normal_()
        b.normal_()
        graph.replay()
        for result, numbers in zip(captured, product(packed, a, b, True), strict=True):
            assert torch.equal(result, numbers)


@pytest.mark.gpu
@gpu
@needs_triton
@pytest.mark.parametrize("tokens", [1, 12])
def test_a_layer_is_captured_with_its_transforms(tokens):
    """Of a greedy and an annealed matrix, against the layer on the CPU; replayed on new activations."""
    from kquant_cli.config import EncoderConfig
    from kquant_cli.encoders import encode
    from kquant_cli.runtime import KashinLinear

    weight = torch.randn(384, 768, generator=torch.Generator().manual_seed(0))
    for config in (EncoderConfig(bits=4), EncoderConfig(encoder="greedy", basis="hadamard", bits=4)):
        encoded = encode(weight, config)
        here, there = KashinLinear.of(encoded), KashinLinear.of(encoded).cuda()
        x = torch.randn(tokens, 768, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            there(x)  # compiles the kernels and makes the tables
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = there(x)
            x.normal_()
            graph.replay()
            expected = here(x.double().cpu())
        assert float((y.double().cpu() - expected).norm() / expected.norm()) < 0.015

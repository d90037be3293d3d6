"""The CUDA kernels for few tokens against float64: their own source, emulated, and on a GPU where there is one."""

import ctypes
import mmap
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from cuda_emulator import EmulatedLauncher, emulator, needs_emulator

from kquant_cli.bases import CoupledBases, basis_for
from kquant_cli.native.cuda_launch import launcher_for
from kquant_cli.packing import pack
from kquant_cli.runtime.products import Packed, cuda
from kquant_cli.runtime.products.look_up import EIGHT, FOUR, SIXTEEN, SIXTEEN_PAIRED, TABLE

TOLERANCES = {torch.float16: 5e-4, torch.bfloat16: 4e-3}  # of results that are rounded
LEVELS = {SIXTEEN: 16, SIXTEEN_PAIRED: 16, FOUR: 4, EIGHT: 8} | {TABLE + bits: 2**bits for bits in range(1, 9)}
SIZES = (160, 256, 1376, 1408, 896)  # 32 * 5, 256 * 1, 32 * 43, 128 * 11, 128 * 7
gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or launcher_for(torch.device("cuda", 0)) is None, reason="needs a newer CUDA device"
)
Case = namedtuple("Case", "pair packed found x channel_scale scale bias expected")


@pytest.fixture
def library():
    return emulator()


@pytest.fixture
def launcher(library, monkeypatch):
    return EmulatedLauncher(library).install(monkeypatch)


def numbers(kind, draw):
    """A codebook that the kind takes."""
    if kind > TABLE:
        return torch.randn(LEVELS[kind], 2, generator=draw)
    book = torch.randint(-126, 127, (LEVELS[kind], 2), generator=draw)
    book[0, 0] = 126  # the largest is there, so that the grid is the one meant
    if kind == SIXTEEN_PAIRED:
        book[8:, 0] = book[:8, 0]
        book[:, 1] //= 2
    return book


def coordinates(pair, x, channel_scale):
    """a and b in float64."""
    x = x.double().cpu()
    x = x if channel_scale is None else x / channel_scale.double().cpu()
    return tuple(basis_for(spec).adjoint(x) for spec in (pair.first, pair.second))


def make(kind, rows, columns, tokens, dtype=torch.bfloat16, step=0.013, device="cpu", scaled=True):
    draw = torch.Generator().manual_seed(rows + columns + tokens)
    levels, pair = LEVELS[kind], CoupledBases(columns, 5)
    codes = torch.randint(levels, (rows, columns), generator=draw, dtype=torch.uint8)
    book = numbers(kind, draw).float() * step
    x = torch.randn(tokens, columns, generator=draw).to(dtype)
    channel_scale = scale = bias = None
    if scaled:
        channel_scale = (torch.rand(columns, generator=draw) + 0.5).half()
        scale = (torch.rand(rows, 1, generator=draw) + 0.5).half()
        bias = torch.randn(rows, generator=draw).to(dtype)
    a, b = coordinates(pair, x, channel_scale)
    u, v = book.double()[codes.int()].unbind(-1)
    expected = a @ u.T + b @ v.T
    if scaled:
        expected = expected * scale.double().T + bias.double()
    packed = Packed(pack(codes, levels).to(device), book.to(device), columns)
    there = (None if t is None else t.to(device) for t in (x, channel_scale, scale, bias))
    found = cuda.look_up_of(packed)
    assert found is not None and found.kind == kind
    return Case(pair, packed, found, *there, expected)


def compute(case):
    of_x = cuda.prepared(case.pair, case.x, case.channel_scale, case.found.digits)
    return cuda.product(case.packed, case.found, of_x, case.scale, case.bias, case.x.dtype)


def check(case):
    y = compute(case)
    error = float((y.double().cpu() - case.expected).norm() / case.expected.norm())
    assert (y.shape, y.dtype) == (case.expected.shape, case.x.dtype)
    assert error < TOLERANCES[y.dtype], (case.found.kind, case.x.shape, case.packed.rows, error)
    return y


@needs_emulator
@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
def test_the_product_is_that_of_float64(launcher, kind, tokens):
    """Rows that fill no tile, words that fill no step, one row; all scales and none."""
    for rows, columns in ((70, 256), (37, 1408), (1, 896)):
        check(make(kind, rows, columns, tokens))
    check(make(kind, 33, 256, tokens, torch.float16, step=1e-3, scaled=False))


@needs_emulator
@pytest.mark.parametrize("kind", [SIXTEEN, SIXTEEN_PAIRED])
def test_sixteen_levels_in_rows_of_other_lengths(launcher, kind):
    """Of 5 and of 43 steps of 16 bytes."""
    for columns in (160, 1376):
        check(make(kind, 40, columns, 1))


@needs_emulator
@pytest.mark.parametrize("kind", LEVELS)
def test_how_the_work_is_cut_does_not_change_a_bit(library, monkeypatch, kind):
    """Any number of multiprocessors, and activations that come in parts: sums of integers are exact."""
    case, results = make(kind, 150, 1408, 4), []
    arguments = (150, 1408, case.found, 4, case.x.device)
    for multiprocessors in (1, 2, 132):
        EmulatedLauncher(library, multiprocessors).install(monkeypatch)
        assert cuda.plan(*arguments).parts == 1
        results.append(check(case))
    least = EmulatedLauncher(library, 3, shared=0).install(monkeypatch)
    while cuda.plan(*arguments) is None:
        least.shared += 1024
    assert cuda.plan(*arguments).parts > 1
    results.append(check(case))
    assert all(torch.equal(result, results[0]) for result in results)


@needs_emulator
def test_one_scale_for_all_rows_and_other_dtypes(launcher):
    case = make(SIXTEEN, 20, 256, 2, torch.float16)
    bias, scale = torch.linspace(-1, 1, 20), torch.tensor([[0.25]])
    y = compute(case._replace(scale=scale, bias=bias, channel_scale=case.channel_scale.float()))
    plain = (case.expected - case.bias.double()) / case.scale.double().T
    assert float((y.double() - (plain * 0.25 + bias.double())).norm() / plain.norm()) < 1e-3
    doubled = compute(
        case._replace(scale=scale.double(), bias=bias.double(), channel_scale=case.channel_scale.double())
    )
    assert torch.equal(doubled, y)  # read as float32
    single = compute(case._replace(scale=torch.tensor([[0.25]]).bfloat16(), bias=bias.bfloat16()))
    assert float((single.double() - (plain * 0.25 + bias.bfloat16().double())).norm() / plain.norm()) < 1e-3


@needs_emulator
@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_activations_are_those_of_the_bases(launcher, columns, dtype):
    pair = CoupledBases(columns, 1)
    for tokens, channel_scale in (
        (1, None),
        (3, torch.linspace(0.5, 2, columns)),
        (20, torch.ones(columns).bfloat16()),
    ):
        x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(dtype)
        expected = coordinates(pair, x, channel_scale)
        for found, wanted in zip(cuda.floats(pair, x, channel_scale), expected, strict=True):
            assert (found.shape, found.dtype) == (x.shape, dtype)
            assert float((found.double() - wanted).norm() / wanted.norm()) < TOLERANCES[dtype]


@needs_emulator
def test_what_is_no_number_is_not_lost_and_zeros_stay(launcher):
    """Integers have no NaN: the scale of the token carries it."""
    case = make(SIXTEEN, 20, 256, 4, scaled=False)
    x = case.x.clone()
    x[0, 3], x[1, 200], x[2] = float("nan"), float("inf"), 0.0
    y = compute(case._replace(x=x))
    assert bool(y[:2].isnan().all())
    assert bool((y[2] == 0).all())
    assert float((y[3].double() - case.expected[3]).norm() / case.expected[3].norm()) < TOLERANCES[y.dtype]


@needs_emulator
@pytest.mark.parametrize("kind", LEVELS)
def test_nothing_is_read_behind_the_codes(launcher, kind):
    """They end where a page ends that is followed by one that cannot be read: to read it ends the process."""
    page = 8 * mmap.PAGESIZE
    memory = mmap.mmap(-1, page + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + page), mmap.PAGESIZE, 0) == 0
    case = make(kind, 21, 896, 2)
    codes = case.packed.codes
    behind = torch.frombuffer(memory, dtype=torch.uint8, count=codes.numel(), offset=page - codes.numel())
    packed = replace(case.packed, codes=behind.view(codes.shape).copy_(codes))
    check(case._replace(packed=packed))


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
def test_on_a_gpu_the_product_is_that_of_float64(kind, tokens):
    for rows, columns in ((70, 256), (37, 1408), (4096, 11008), (1000, 4096)):
        case = make(kind, rows, columns, tokens, device="cuda")
        first = check(case)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = compute(case)
        graph.replay()
        assert torch.equal(y, first)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("columns", [*SIZES, 4096, 11008, 14336])
def test_on_a_gpu_the_activations_are_those_of_the_bases(columns):
    pair, x = CoupledBases(columns, 1), torch.randn(3, columns, device="cuda").bfloat16()
    for found, wanted in zip(cuda.floats(pair, x, None), coordinates(pair, x, None), strict=True):
        assert float((found.double().cpu() - wanted).norm() / wanted.norm()) < TOLERANCES[torch.bfloat16]

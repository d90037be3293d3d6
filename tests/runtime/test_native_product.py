"""The compiled product against the reference in float64."""

import ctypes
import mmap
import os
import subprocess
import sys

import pytest
import torch

from kquant_cli import native as compiling
from kquant_cli.errors import KQuantError
from kquant_cli.packing import pack, row_bytes, word
from kquant_cli.runtime.products import Packed, backend_for, native, product, reference
from kquant_cli.runtime.torch_threads import parallel

pytestmark = pytest.mark.skipif(compiling.library("product") is None, reason="needs a compiler")

# Every size of word, the bounds between them, and every way to look a code up.
LEVELS = [*range(2, 35), 41, 47, 64, 65, 74, 84, 85, 100, 127, 128, 129, 200, 255, 256]
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 17, 64, 65)  # every number that the loops take together, and rests


def case(levels, rows=5, columns=131, tokens=1, book=2, group=0):
    """A random matrix, whose first row has the highest code everywhere, and activations."""
    generator = torch.Generator().manual_seed(levels + columns)
    codes = torch.randint(0, levels, (rows, columns), generator=generator).to(torch.uint8)
    codes[0] = levels - 1
    scale = torch.rand(rows, -(-columns // group), generator=generator).half() if group else None
    codebook = torch.randn(levels, book, generator=generator)
    a, b = torch.randn(2, tokens, columns, generator=generator)
    return Packed(pack(codes, levels), codebook, columns, scale, group), a, b if book == 2 else None


def agrees(packed, a, b, split, dtype=torch.float64):
    """The backend's product is the reference's."""
    assert native.supports(packed, a, split)
    found = native.product(packed, a, b, split)
    expected = reference.product(packed, a.to(dtype), None if b is None else b.to(dtype), split)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape
            assert one.dtype == a.dtype
            off = float((one - other).norm() / other.norm())
            assert off < 1e-5, (packed.levels, packed.rows, packed.columns, len(a), b is None, split, off)


def test_the_levels_have_every_kind_of_word():
    assert {word(levels)[1] for levels in LEVELS} == {word(levels)[1] for levels in range(2, 257)}


def test_every_number_of_levels():
    for levels in range(2, 257):
        agrees(*case(levels), split=False)
        agrees(*case(levels, columns=77, tokens=3), split=True)
        agrees(*case(levels, columns=300, tokens=5, book=1), split=False)
        agrees(*case(levels, columns=300, tokens=70), split=False)


@pytest.mark.parametrize("levels", [3, 4, 8, 12, 16, 32, 100, 256])
def test_columns(levels):
    """Fewer than a word has, than a vector has, whole vectors, and one more or less: for each kind of word."""
    for columns in (1, 2, 15, 16, 17, 31, 64, 255, 576):
        agrees(*case(levels, rows=3, columns=columns), split=False)
        agrees(*case(levels, rows=1, columns=columns, tokens=4), split=False)
        agrees(*case(levels, rows=9, columns=columns, tokens=70), split=True)


@pytest.mark.parametrize(("book", "split"), [(1, False), (1, True), (2, False), (2, True)])
def test_tokens(book, split):
    """With each kind of code, which the compiler makes loops of their own for: fields of bits, odd ones, fractions."""
    for levels in (8, 12, 16):
        for tokens in TOKENS:
            agrees(*case(levels, rows=37, tokens=tokens, book=book), split=split)


@pytest.mark.parametrize("book", [1, 2])
def test_scales_of_groups(book):
    for group in (16, 50, 128, 300):
        agrees(*case(16, rows=9, columns=300, book=book, group=group), split=False)
        agrees(*case(7, rows=9, columns=300, tokens=20, book=book, group=group), split=True)


def test_several_tiles(monkeypatch):
    monkeypatch.setattr(native, "TILE", 1000)
    agrees(*case(16, rows=37, columns=131, tokens=70), split=False)
    agrees(*case(16, rows=37, columns=131, tokens=70), split=True)


def test_more_threads_than_one():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for levels, tokens in ((12, 1), (16, 1), (12, 70), (16, 70)):
            agrees(*case(levels, rows=1031, columns=300, tokens=tokens), split=False)
    finally:
        torch.set_num_threads(threads)


def test_activations_with_gaps():
    packed, a, b = case(16, tokens=6)
    agrees(packed, a[::2], b[::2], split=False)
    agrees(packed, a.T.contiguous().T, b, split=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize("levels", [3, 8, 12, 16, 100, 256])
def test_no_bytes_beyond_the_end_are_read(levels):
    """The codes end where a page ends that is followed by one that cannot be read: to read it ends the process."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + page), page, 0) == 0
    for columns in (1, 5, 16, 33, 100):
        size = row_bytes(columns, levels)
        codes = torch.frombuffer(memory, dtype=torch.uint8, count=3 * size, offset=page - 3 * size).view(3, size)
        packed = Packed(codes, torch.ones(levels, 2), columns)
        for tokens in (0, 1, 4, 80):
            first, _ = native.product(packed, torch.ones(tokens, columns), torch.ones(tokens, columns), False)
            assert torch.equal(first, torch.full((tokens, 3), 2.0 * columns))


def test_which_backend_is_taken(monkeypatch):
    packed, a, b = case(16)
    assert backend_for(packed, a, False) == "native"
    assert backend_for(packed, a.double(), False) == "reference"
    monkeypatch.setenv("KQUANT_BACKEND", "reference")
    assert backend_for(packed, a, False) == "reference"
    monkeypatch.setenv("KQUANT_BACKEND", "refrence")
    with pytest.raises(KQuantError, match="KQUANT_BACKEND is 'refrence', expected reference or triton"):
        backend_for(packed, a, False)
    monkeypatch.delenv("KQUANT_BACKEND")
    compiled = product(packed, a, b, False)[0]
    monkeypatch.setattr(native, "library", lambda name: None)
    assert backend_for(packed, a, False) == "reference"
    torch.testing.assert_close(product(packed, a, b, False)[0], compiled)


ONE_POOL = """
import torch
from kquant_cli.runtime.products import Packed, backend_for, product
torch.set_num_threads(2)
codes = torch.zeros(1024, 1024, dtype=torch.uint8)
packed, a = Packed(codes, torch.ones(16, 2), 2048), torch.ones(1, 2048)
a @ torch.ones(2048, 2048)
found = [backend_for(packed, a, False), float(product(packed, a, a, False)[0].sum())]
with open("/proc/self/maps") as maps:
    names = {line.split()[-1].rpartition("/")[2] for line in maps}
found.append(sum(name.startswith(("libgomp", "libomp", "libiomp")) for name in names))
print(*found)
"""


def start(**changes):
    environment = os.environ | changes
    run = subprocess.run([sys.executable, "-c", ONE_POOL], env=environment, capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_torch_and_the_loops_share_one_openmp():
    assert start() == ["native", str(2.0 * 2048 * 1024), "1"]
    assert parallel() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_without_native_code():
    assert start(KQUANT_NATIVE="0")[:2] == ["reference", str(2.0 * 2048 * 1024)]


@pytest.mark.parametrize("options", [("-march=x86-64-v3",), ("-march=x86-64",)], ids=["AVX2", "plain"])
def test_other_processors(monkeypatch, tmp_path, options):
    """What is compiled for processors without AVX-512, and without anything: run here."""
    flags = compiling._processor()
    if "x86_64" not in flags or not {"avx2", "fma"} <= set(flags.split()):
        pytest.skip("needs an x86 with AVX2")
    monkeypatch.setattr(compiling, "TUNED", options)
    monkeypatch.setattr(compiling, "OPTIONS", ("-Og", *(o for o in compiling.OPTIONS if o != "-O3")))  # compiles faster
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loops = compiling.library.__wrapped__("product")
    assert loops is not None
    monkeypatch.setattr(native, "library", lambda name: loops)
    native._functions.cache_clear()
    try:
        for levels in LEVELS:
            agrees(*case(levels), split=False)
            agrees(*case(levels, columns=77, tokens=3), split=True)
            agrees(*case(levels, columns=300, tokens=70), split=False)
    finally:
        native._functions.cache_clear()


def test_rows_have_the_bytes_that_the_loops_read():
    for levels in LEVELS:
        digits, size = word(levels)
        assert row_bytes(131, levels) == -(-131 // digits) * size

"""Bases on real tensors: every axis, layout, dtype, chunk and thread against the product with the dense matrix."""

import threading

import pytest
import torch

from kquant_cli.bases import BASES, DenseBasis, application, make_basis

SIZES = (1, 2, 12, 64, 96, 100, 768)  # none, powers of two, with odd factors, above and below every dense table
ODD = (3, 97)  # which a Hadamard matrix has not


def sizes(kind):
    return SIZES if kind in ("hadamard", "signed_hadamard") else SIZES + ODD


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def product(q, x, dim):
    """q along dim of x, by the dense matrix."""
    return torch.tensordot(q.to(x.dtype), x, dims=([1], [dim])).movedim(0, dim)


def check(basis, x, dim, tolerance=1e-12):
    """Both directions along an axis against the dense matrix, in float64, and the input as it was."""
    before, q = x.clone(), basis.dense()
    for result, matrix in ((basis.apply(x, dim), q), (basis.adjoint(x, dim), q.T)):
        assert (result.shape, result.dtype) == (x.shape, x.dtype)
        expected = product(matrix, x.double(), dim)
        off = float((result.double() - expected).abs().max())
        assert off <= tolerance, (basis.spec, x.dtype, tuple(x.shape), dim, off)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", BASES)
def test_every_size_is_orthogonal_and_applies_to_rows_and_to_columns(kind):
    """The kernels of a kind at all its sizes; how a tensor comes to be rows or columns is the next test's."""
    for size in sizes(kind):
        basis = make_basis(kind, size, seed=3)
        q = basis.dense()
        assert q.shape == (size, size)
        torch.testing.assert_close(q.T @ q, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-13)
        for x, dim in ((normal(size), 0), (normal(4, size), -1), (normal(size, 5), 0), (normal(2, size, 3), 1)):
            check(basis, x, dim)


@pytest.mark.parametrize(("kind", "size"), [("dct", 12), ("dct", 97), ("twice_signed_hadamard_dct", 96), ("qr", 3)])
def test_every_axis_and_layout(kind, size):
    """Of a small and of a fast transform, with a Kronecker product and with a dense matrix."""
    basis = make_basis(kind, size, seed=3)
    for x, dim in (
        (normal(size, 5).T, 1),
        (normal(4, size).T, -2),
        (normal(2, 3, size), 2),
        (normal(size, 2, 3), -3),
        (normal(3, 2, size).transpose(0, 1), -1),
        (normal(6, 2 * size)[::2, ::2], 1),
        (normal(2 * size, 6)[::2, ::2], 0),
        (normal(1, size).expand(3, size), 1),
    ):
        check(basis, x, dim)


@pytest.mark.parametrize("kind", BASES)
def test_many_chunks_on_several_threads(kind, monkeypatch):
    monkeypatch.setattr(BASES[kind], "chunk", 2**15)
    basis = make_basis(kind, 768, seed=1)
    threads = torch.get_num_threads()
    try:
        for dim, shape in ((1, (300, 768)), (0, (768, 300))):  # at least seven chunks, the last one shorter
            x = normal(*shape, dtype=torch.float32)
            torch.set_num_threads(2)
            y = basis.apply(x, dim)
            assert torch.get_num_threads() == 2
            expected = product(basis.dense(), x.double(), dim).float()
            torch.testing.assert_close(y, expected, rtol=0, atol=2e-5)
            torch.set_num_threads(1)
            assert torch.equal(basis.apply(x, dim), y)  # chunks, not threads, decide the rounding
    finally:
        torch.set_num_threads(threads)


def test_threads_of_the_caller_keep_their_number():
    seen = []
    x = normal(2048, 512, dtype=torch.float32)
    make_basis("dct", 512).apply(x)
    before = torch.get_num_threads()
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == before
    assert seen == [before]


TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("kind", BASES)
def test_dtypes(kind):
    """16-bit floats are rounded at the end only: the error of one rounding of numbers up to 4."""
    basis = make_basis(kind, 384, seed=2)
    for dtype, tolerance in TOLERANCES.items():
        x = normal(20, 384, dtype=dtype)
        for dim, y in ((1, x), (0, x.T.contiguous())):
            check(basis, y, dim, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["identity", "dct", "signed_hadamard_dct", "butterfly", "qr"])
def test_out_takes_the_result_also_in_place(kind, dtype):
    """One kind of each file that writes to a tensor of its own: out is filled by the code that all share."""
    basis = make_basis(kind, 96, seed=2)
    for dim, shape in ((0, (96, 10)), (1, (10, 96)), (1, (3, 96, 4)), (0, (96, 2, 3))):
        x = normal(*shape, dtype=dtype)
        expected = basis.adjoint(x, dim).clone()
        out = torch.empty_like(x)
        assert basis.adjoint(x, dim, out=out) is out
        assert torch.equal(out, expected)
        strided = torch.empty(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]
        assert basis.adjoint(x, dim, out=strided) is strided
        assert torch.equal(strided, expected)
        assert basis.adjoint(x, dim, out=x) is x
        assert torch.equal(x, expected)
    transposed = normal(10, 96, dtype=dtype).T
    expected = basis.apply(transposed, 0).clone()
    assert basis.apply(transposed, 0, out=transposed) is transposed
    assert torch.equal(transposed, expected)


def test_identity_returns_its_input():
    x = normal(3, 8)
    assert make_basis("identity", 8).apply(x) is x
    assert make_basis("identity", 8).adjoint(x) is x


@pytest.mark.parametrize("kind", BASES)
def test_gradients_are_the_other_direction(kind):
    basis = make_basis(kind, 12, seed=4)
    x = normal(2, 12, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: basis.apply(x, 1), x)
    assert torch.autograd.gradcheck(lambda x: basis.adjoint(x, 1), x)


def test_no_grad_and_inference_mode_hold_on_every_thread():
    basis = make_basis("dct", 256)
    x = normal(4096, 256, dtype=torch.float32)
    expected = basis.apply(x)
    with torch.no_grad():
        assert not basis.apply(x.clone().requires_grad_()).requires_grad
    with torch.inference_mode():
        assert torch.equal(make_basis("dct", 256).apply(x), expected)


def test_no_vectors():
    for kind in BASES:
        basis = make_basis(kind, 12)
        assert basis.apply(torch.empty(0, 12)).shape == (0, 12)
        assert basis.adjoint(torch.empty(12, 0), dim=0).shape == (12, 0)


def test_wrong_calls():
    for kind in BASES:
        basis = make_basis(kind, 12)
        for x, dim in ((normal(3, 11), -1), (normal(3, 12), 0), (normal(3, 12), 2), (torch.tensor(1.0), -1)):
            with pytest.raises(ValueError, match="must exist and have 12 entries"):
                basis.apply(x, dim)
        with pytest.raises(ValueError, match=r"floating-point tensors, not to torch\.int64"):
            basis.adjoint(torch.ones(3, 12, dtype=torch.int64))
        with pytest.raises(ValueError, match="out must have the input's shape"):
            basis.apply(normal(3, 12), out=normal(3, 12, dtype=torch.float32))


def test_dense_basis_wraps_any_orthogonal_matrix():
    q = torch.linalg.qr(normal(50, 50))[0]
    basis = DenseBasis(q)
    assert (basis.size, basis.spec, basis.note) == (50, None, "")
    torch.testing.assert_close(basis.dense(), q, rtol=0, atol=1e-15)
    x = normal(50, 7)
    torch.testing.assert_close(basis.apply(x, 0), q @ x)
    torch.testing.assert_close(basis.adjoint(x.T), x.T @ q)
    half = DenseBasis(q.to(torch.bfloat16))  # orthogonal up to its rounding
    torch.testing.assert_close(half.apply(x, 0), q.to(torch.bfloat16).double() @ x)


def test_dense_basis_refuses_what_is_not_orthogonal():
    with pytest.raises(ValueError, match="not orthogonal"):
        DenseBasis(1.001 * torch.eye(10))
    with pytest.raises(ValueError, match="square float matrix"):
        DenseBasis(torch.ones(3, 4))
    with pytest.raises(ValueError, match="square float matrix"):
        DenseBasis(torch.eye(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="not orthogonal"):
        DenseBasis(torch.full((4, 4), torch.nan))


def test_dense_comes_in_the_dtype_asked_for():
    basis = make_basis("hadamard", 12)
    assert torch.equal(basis.dense(torch.float32), basis.dense().float())


def test_memory_of_temporaries_is_a_chunk_not_the_input():
    """Every kernel gets at most a chunk, or the narrowest block of columns."""
    seen = []

    def kernel(part):
        seen.append(part.shape)
        return part.clone()

    x = normal(5000, 300, dtype=torch.float32)
    assert torch.equal(application.transform(x, 1, 300, kernel, kernel), x)
    assert all(rows * 300 <= application.CPU_CHUNK for rows, _ in seen)
    assert sum(rows for rows, _ in seen) == 5000
    seen.clear()
    x = normal(30000, 70, dtype=torch.float32)
    assert torch.equal(application.transform(x, 0, 30000, kernel, kernel), x)
    assert sorted(columns for _, columns in seen) == [6, 32, 32]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", BASES)
def test_on_a_gpu(kind):
    for size in (12, 96, 768, 2048):
        basis = make_basis(kind, size, seed=3)
        x = normal(40, size)
        for dim, y in ((1, x), (0, x.T.contiguous())):
            torch.testing.assert_close(basis.apply(y.cuda(), dim).cpu(), basis.apply(y, dim), rtol=0, atol=1e-12)
            torch.testing.assert_close(basis.adjoint(y.cuda(), dim).cpu(), basis.adjoint(y, dim), rtol=0, atol=1e-12)
            half = basis.apply(y.cuda().half(), dim).cpu()
            torch.testing.assert_close(half, basis.apply(y, dim).half(), rtol=4e-3, atol=4e-3)

"""The whole encoder: its error on Gaussian and on awkward matrices, its sides, dtypes, levels and memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kquant_cli.codebooks import lloyd_max, nearest
from kquant_cli.codebooks.integer_grids import integer_grids
from kquant_cli.config import EncoderConfig
from kquant_cli.encoded import EncodedMatrix
from kquant_cli.encoders import encode, encoded_bytes
from kquant_cli.encoders.annealed import Annealed, drive
from kquant_cli.encoders.annealed import encode as room


def gaussian(rows=96, columns=768, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squared_error(weight, encoded):
    """|W - W^|^2 / |W|^2, in float64, from the decoded weight."""
    weight = weight.double()
    return float((encoded.decode(torch.float64) - weight).square().sum() / weight.square().sum())


def error_of(weight, **settings):
    return squared_error(weight, encode(weight, EncoderConfig(**settings)))


@pytest.mark.parametrize(
    ("effort", "levels", "most"),
    [
        *(("balanced", 4, 0.0760), ("balanced", 8, 0.0220), ("balanced", 16, 0.0065), ("balanced", 32, 0.0019)),
        *(("fast", 4, 0.081), ("fast", 8, 0.0255), ("fast", 16, 0.0105)),
    ],
)
def test_gaussian_matrices(effort, levels, most):
    """The levels that were asked for; the bound is 1 / levels^2."""
    weight = gaussian(128, 1024)
    encoded = encode(weight, EncoderConfig(levels=levels, effort=effort))
    error = squared_error(weight, encoded)
    assert levels**-2.0 < error <= most
    assert encoded.record.relative_error**2 == pytest.approx(error, rel=1e-3)


def test_gaussian_matrices_at_the_best_effort():
    assert error_of(gaussian(64, 1024), bits=2, effort="best") <= 0.0735


@pytest.mark.parametrize("bits", [6, 7, 8])
def test_high_rates_are_no_worse_than_rotation_and_lloyd_max(bits):
    """On a Gaussian matrix the rotation changes nothing: the best scalar levels, with each row's scale."""
    weight = gaussian(16, 1024)
    levels = lloyd_max(2**bits)
    rms = weight.double().square().mean(dim=1, keepdim=True).sqrt()
    units = (weight / rms).reshape(-1, 1)
    scalar = levels[nearest(units, levels.unsqueeze(1)).long()].view(weight.shape) * rms
    expected = float((scalar - weight).square().sum() / weight.double().square().sum())
    assert error_of(weight, bits=bits) <= expected


AWKWARD = {
    "Student-t(4)": lambda n, m: torch.from_numpy(np.random.RandomState(0).standard_t(4, (n, m))).float(),
    "1% of the columns x 20": lambda n, m: gaussian(n, m) * torch.where(torch.arange(m) % 100 == 7, 20, 1),
    "rows with offsets": lambda n, m: gaussian(n, m) + 2 * normal(n, 1),
    "columns with offsets": lambda n, m: gaussian(n, m) + 2 * normal(1, m),
    "low rank plus noise": lambda n, m: normal(n, 8) @ normal(8, m, seed=2) + gaussian(n, m),
    "rows of many sizes": lambda n, m: gaussian(n, m) * torch.logspace(-3, 3, n).unsqueeze(1),
    "half of the rows zero": lambda n, m: gaussian(n, m) * (torch.arange(n) % 2).unsqueeze(1),
    "an outlier": lambda n, m: gaussian(n, m).index_fill(1, torch.tensor([5]), 0).index_put(
        (torch.tensor([3]), torch.tensor([4])), torch.tensor(1000.0)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "bits"), zip(AWKWARD, [2, 3, 4] * 3, strict=False))
def test_awkward_matrices_are_like_gaussian_ones(name, bits):
    """Rotated, all are Gaussian: so the number of bits does not matter here, and each has one."""
    assert error_of(AWKWARD[name](96, 768), bits=bits) <= 1.05 * error_of(gaussian(), bits=bits)


@pytest.mark.parametrize("columns", [576, 1000, 1001, 1155, 1536, 11008, 50257])
def test_sizes_are_like_powers_of_two(columns):
    """From orders 1 (of 2^k) to 50257 of the DCT."""
    weight = gaussian(max(2, 2**16 // columns), columns)
    assert error_of(weight, bits=3) <= 1.05 * error_of(gaussian(64, 1024), bits=3)


def test_every_small_size_encodes():
    for columns in range(1, 14):
        for levels in (2, 4, 5, 256):
            weight = gaussian(20, columns)
            encoded = encode(weight, EncoderConfig(levels=levels))
            assert torch.isfinite(encoded.decode()).all()
            assert squared_error(weight, encoded) <= 0.4


@pytest.mark.parametrize("levels", [2, 3, 5, 6, 7, 12, 40, 100, 255, 256])
def test_any_number_of_levels(levels):
    weight = gaussian(24, 512)
    encoded = encode(weight, EncoderConfig(levels=levels))
    assert encoded.codes.dtype == torch.uint8
    assert encoded.codebook.shape == (levels, 2)
    assert int(encoded.codes.max()) == levels - 1  # all are of use
    scalar = {2: 0.3634, 3: 0.1902, 5: 0.0799, 6: 0.0580, 7: 0.0440}.get(levels, 2.7 / levels**2)  # Max (1960); large K
    assert levels**-2.0 < squared_error(weight, encoded) < scalar * (1.01 if levels == 2 else 0.98)


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("levels", [2, 3, 4, 8, 15, 16, 32])
def test_rings_are_constant_and_not_fitted(levels, effort, monkeypatch):
    """Integers times a power of two near the weights' size, for every matrix, exactly; nothing of it is stored."""
    monkeypatch.setattr(room, "refit_codebook", None)
    for size in (1.0, 0.003):
        encoded = encode(size * gaussian(12, 64), EncoderConfig(levels=levels, codebook="ring", effort=effort))
        assert encoded.layout.grid == f"ring-{levels}"
        assert size / 1.5 < 2.0**encoded.layout.exponent < 1.5 * size
        integers = torch.tensor(integer_grids()[encoded.layout.grid], dtype=torch.float64)
        assert torch.equal(encoded.codebook.double(), integers * 2.0 ** (encoded.layout.exponent - 7))
        assert set(encoded.to_tensors()) == {"weight_codes", "weight_scale"}


@pytest.mark.parametrize(
    ("levels", "settings"),
    [(16, {"codebook": "product"}), (33, {}), (32, {"effort": "fast"}), (33, {"codebook": "ring"})],
)
def test_products_and_large_rings_are_fitted_and_stored(levels, settings):
    """At 32 levels 20 sweeps are too few for a ring."""
    first, second = (encode(gaussian(12, 64, seed), EncoderConfig(levels=levels, **settings)) for seed in (0, 1))
    assert first.layout.grid is None
    assert "weight_codebook" in first.to_tensors()
    assert not torch.equal(first.codebook, second.codebook)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_constant_ring_costs_nothing(bits, monkeypatch):
    """Beside a ring of floats that is fitted to the matrix; the same rows, but annealing is not that exact."""
    weight = gaussian(256, 1024)
    constant = error_of(weight, bits=bits)
    monkeypatch.setattr(drive, "integer_grids", dict)
    fitted = encode(weight, EncoderConfig(bits=bits))
    assert fitted.layout.grid is None
    assert constant <= 1.006 * squared_error(weight, fitted)


def test_product_codebooks():
    """K / 2 values of u, 2 of v; between rings and scalar levels where there are sweeps enough for rings."""
    weight = gaussian(64, 1024)
    for levels, scalar in ((8, 0.0345), (16, 0.0095)):
        encoded = encode(weight, EncoderConfig(levels=levels, codebook="product"))
        u, v = encoded.codebook.unbind(dim=1)
        spread = float(encoded.codebook.abs().max()) * 0.08  # the refit moves them a little
        assert len(_clusters(u, spread)) == levels // 2
        assert len(_clusters(v, spread)) == 2
        ring = error_of(weight, levels=levels, codebook="ring")
        assert ring < squared_error(weight, encoded) < scalar


def _clusters(values, spread):
    """Groups of ascending values with gaps of more than `spread` between them."""
    ordered = values.sort().values
    gaps = (ordered.diff() > spread).nonzero()[:, 0] + 1
    return torch.tensor_split(ordered, gaps.tolist())


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**90])
def test_powers_of_two_change_nothing_but_the_codebook(factor):
    """About 1e-30 and 1e27: no float16 scale over- or underflows."""
    weight = gaussian(20, 256)
    plain, scaled = (encode(w, EncoderConfig(bits=3)) for w in (weight, weight * factor))
    assert torch.equal(plain.codes, scaled.codes)
    assert torch.equal(plain.scale, scaled.scale)
    assert torch.equal(plain.codebook * factor, scaled.codebook)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_any_factor_keeps_the_error(factor):
    weight = gaussian(20, 256)
    assert error_of(weight * factor, bits=3) == pytest.approx(error_of(weight, bits=3), rel=0.01)


def test_zeros():
    for shape in ((5, 64), (1, 1)):
        assert torch.equal(encode(torch.zeros(shape), EncoderConfig(bits=3)).decode(), torch.zeros(shape))
    weight = gaussian(9, 64)
    weight[3] = 0
    encoded = encode(weight, EncoderConfig(bits=3))
    assert (encoded.decode()[3] == 0).all()
    assert encoded.scale[3] == 0


def test_tiny_rows_are_kept_as_far_as_float16_reaches():
    weight = gaussian(32, 256)
    weight[1:3] *= torch.tensor([[1e-5], [1e-9]])
    decoded = encode(weight, EncoderConfig(bits=4)).decode()
    assert float((decoded[1] - weight[1]).norm() / weight[1].norm()) ** 2 < 0.0075
    assert (decoded[2] == 0).all()


def test_zeros_do_not_draw_the_codebook_to_them(monkeypatch):
    """Even where every row of the sample would be zeros: rows are taken for it from the others."""
    weight = gaussian(64, 256)
    weight[1::2] = 0
    monkeypatch.setattr(room, "SAMPLE", 32 * 256)
    product = EncoderConfig(bits=3, codebook="product")
    first = encode(weight, product)
    second = encode(weight.roll(1, dims=0), product)
    assert torch.equal(first.codes[::2], second.codes[1::2])
    torch.testing.assert_close(second.codebook, first.codebook, rtol=1e-5, atol=0)
    assert squared_error(weight.roll(1, dims=0), second) < 0.026


@pytest.mark.parametrize("weight", [torch.full((6, 96), 3.0), torch.full((1, 512), -2.0), torch.ones(40, 1)])
def test_constant_matrices(weight):
    """A constant is a single row of A^T, spread by the signs."""
    assert error_of(weight, bits=4) < 0.0095


def test_one_row_and_one_column():
    assert error_of(gaussian(1, 4096), bits=4) < 0.0062
    column = gaussian(4096, 1)
    assert error_of(column, bits=4) < 1e-6  # a scale a row is all it takes
    assert error_of(column, bits=4, side="output") < 0.0062


def test_the_output_side_is_the_input_side_of_the_transpose():
    weight = gaussian(60, 576)
    rows = encode(weight, EncoderConfig(bits=4, seed=4))
    for other in (weight.T, weight.T.contiguous()):
        columns = encode(other, EncoderConfig(bits=4, seed=4, side="output"))
        assert torch.equal(columns.codes, rows.codes.T)
        assert columns.codes.is_contiguous()
        assert torch.equal(columns.codebook, rows.codebook)
        assert torch.equal(columns.col_scale, rows.scale[:, 0])
        assert columns.scale is None
        torch.testing.assert_close(columns.decode().T, rows.decode(), rtol=0, atol=1e-5)
        assert (columns.layout.frame.left_u, columns.layout.frame.left_v) == (
            rows.layout.frame.right_u,
            rows.layout.frame.right_v,
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    weight = gaussian(24, 320).to(dtype)
    encoded = encode(weight, EncoderConfig(bits=3))
    reference = encode(weight.float(), EncoderConfig(bits=3))
    assert (encoded.codes == reference.codes).float().mean() > 0.99
    assert encoded.layout.dtype == str(dtype).removeprefix("torch.")
    assert encoded.codebook.dtype == torch.float32
    assert encoded.scale.dtype == torch.float16
    assert squared_error(weight, encoded) == pytest.approx(squared_error(weight, reference), rel=0.01)
    assert error_of(weight.double(), bits=3) < 0.023


def test_the_same_bytes_with_any_number_of_threads_and_any_chunk(monkeypatch):
    weight = gaussian(150, 192)
    expected = encode(weight, EncoderConfig(bits=3))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for name, tensor in encode(weight, EncoderConfig(bits=3)).to_tensors().items():
                assert torch.equal(tensor, expected.to_tensors()[name]), name
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(room, "CHUNK", 37 * 192 + 5)
    again = encode(weight, EncoderConfig(bits=3))
    assert (again.codes == expected.codes).float().mean() > 0.99
    assert len(again.record.trace) == len(expected.record.trace)
    np.testing.assert_allclose(again.record.trace, expected.record.trace, rtol=1e-3)


def test_the_seed_changes_the_frame_and_the_codes():
    weight = gaussian(10, 192)
    first, second = (encode(weight, EncoderConfig(bits=3, seed=seed)) for seed in (0, 1))
    assert first.layout.frame != second.layout.frame
    assert not torch.equal(first.codes, second.codes)


def test_the_layout_is_known_beforehand_and_the_bytes_are_counted():
    """Codes of 3 bits, 40 rows of 13 words of 8, a float16 scale a row and 8 x 2 numbers of a product's codebook."""
    for side, codebook in (("input", "ring"), ("output", "ring"), ("input", "product")):
        config = EncoderConfig(bits=3, side=side, codebook=codebook)
        encoded = encode(gaussian(40, 100), config)
        layout = config.chosen.layout((40, 100), config.level_count, config.settings)
        assert replace(layout, exponent=encoded.layout.exponent) == encoded.layout
        scales = 40 if side == "input" else 100
        stored = 16 * 32 if codebook == "product" else 0
        assert encoded.bits_per_weight == pytest.approx((40 * 39 * 8 + 16 * scales + stored) / 4000)
        assert encoded_bytes((40, 100), config) == encoded.bits_per_weight * 4000 / 8
        again = EncodedMatrix.from_tensors(encoded.layout, encoded.to_tensors())
        assert torch.equal(again.decode(), encoded.decode())


@pytest.mark.parametrize(("levels", "off"), [(64, 1.05), (16, 1.5)])
def test_the_codebook_has_the_size_of_the_weights(levels, off):
    """So that float16 scales are near 1, whatever the weights are; a constant one is so but for a power of two."""
    encoded = encode(gaussian(20, 256) * 1e-3, EncoderConfig(levels=levels, codebook="ring"))
    scale = float(encoded.scale.float().mean())
    assert scale * float(encoded.codebook.square().sum(dim=1).mean().sqrt()) == pytest.approx(0.97e-3, rel=0.1)
    assert 1 / off < scale < off
    assert encoded.record.u_max == pytest.approx(scale * float(encoded.codebook[:, 0].abs().max()) * 1e3, rel=0.05)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_the_root_mean_square_of_unequal_parts(factor):
    """In chunks of which the last is short, and no square over- or underflows."""
    weight = gaussian(23, 50) * torch.linspace(1, 9, 23).unsqueeze(1) * factor
    found = room._root_mean_square(weight.split(10))
    assert found.shape == (1, 1)
    assert float(found) == pytest.approx(float(weight.double().square().mean().sqrt()), rel=1e-5)


def test_the_record_has_the_course_of_the_annealing():
    record = encode(gaussian(64, 512), EncoderConfig(bits=4, effort="best")).record
    assert (record.encoder, record.levels, record.iterations, record.converged) == ("annealed", 16, 400, None)
    assert len(record.trace) == 50
    assert 0.3 < record.trace[0] < 1
    assert record.trace[-1] == pytest.approx(record.relative_error, rel=0.15)


def test_float64_weights_are_not_rounded_before_the_scale_is_known():
    """1e-200 is 0 in float32; a codebook in float32 cannot have it either, but nothing may overflow to NaN."""
    assert torch.isfinite(encode(gaussian(4, 64).double() * 1e-200, EncoderConfig(bits=3)).decode()).all()


def test_encode_annealed_leaves_the_weight_alone():
    weight = gaussian(8, 64)
    before = weight.clone()
    Annealed().encode(weight, 8, EncoderConfig().settings)
    assert torch.equal(weight, before)


class PeakMemory(TorchDispatchMode):
    """The most bytes of tensors made by operations that are alive at a time."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        self.alive = {at: part for at, part in self.alive.items() if not part[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()).data_ptr() not in known:
                self.alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self.alive.values()))
        return result


@pytest.mark.parametrize("side", ["input", "output"])
def test_memory_is_a_few_chunks_beside_weight_and_codes(side, monkeypatch):
    """Chunks of 64 KiB, and weights of 2 and 4 MiB: what grows with the weight is codes, scales and their numbers."""
    monkeypatch.setattr(room, "CHUNK", 2**14)
    monkeypatch.setattr(room, "SAMPLE", 2**14)
    config, peaks = EncoderConfig(bits=2, effort="fast", side=side), []
    for lines in (2**11, 2**12):
        weight = gaussian(lines, 256) if side == "input" else gaussian(256, lines)
        with PeakMemory() as memory:
            Annealed().encode(weight, config.level_count, config.settings)
        peaks.append(memory.peak - weight.numel())
    assert 3 * 2**16 < peaks[0] < 14 * 2**16 + 2**11 * 64
    assert peaks[1] - peaks[0] < 2**11 * 64

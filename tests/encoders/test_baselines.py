"""The baselines against their textbook definitions."""

import pytest
import torch
from sklearn.cluster import KMeans

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode


def gaussian(rows=24, columns=300, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_uniform_groups_by_hand(bits):
    """Round to nearest in groups of 128, the last one of 44 columns, with float16 scales."""
    weight = gaussian()
    encoded = encode(weight, EncoderConfig(encoder="uniform", bits=bits))
    expected = torch.empty_like(weight)
    for row in range(24):
        for begin in (0, 128, 256):
            part = weight[row, begin : begin + 128]
            scale = (part.abs().max() * 2 / (2**bits - 1)).half().float()
            levels = (part / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            expected[row, begin : begin + 128] = levels * scale
    assert encoded.scale.shape == (24, 3)
    assert encoded.scale.dtype == torch.float16
    assert torch.allclose(encoded.decode(), expected, atol=1e-6)


def test_uniform_one_bit_is_sign_times_mean():
    weight = gaussian(4, 200)
    expected = torch.cat([p.sign() * p.abs().mean(1, keepdim=True) for p in weight.split(128, dim=1)], dim=1)
    assert torch.allclose(encode(weight, EncoderConfig(encoder="uniform", bits=1)).decode(), expected, atol=1e-3)


def test_uniform_per_tensor_spans_the_range():
    weight = gaussian() + 3
    encoded = encode(weight, EncoderConfig(encoder="uniform", bits=3, group_size=0))
    step = float(weight.max() - weight.min()) / 7
    expected = weight.min() + ((weight - weight.min()) / step).round() * step
    assert torch.allclose(encoded.decode(), expected, atol=1e-5)
    assert encoded.scale is None


@pytest.mark.parametrize("factor", [1e30, 1e8, 1e-7, 1e-30])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_scales_that_float16_cannot_hold_are_relative_to_a_power_of_two(factor, bits):
    config = EncoderConfig(encoder="uniform", bits=bits)
    usual, encoded = encode(gaussian(4, 64), config), encode(gaussian(4, 64) * factor, config)
    assert encoded.scale.dtype == torch.float16
    assert encoded.record.relative_error == pytest.approx(usual.record.relative_error, rel=0.02)
    ratio = (encoded.codebook / usual.codebook)[usual.codebook != 0]
    assert torch.frexp(ratio).mantissa.unique().tolist() == [0.5]


def test_only_groups_that_do_not_matter_lose_digits_beside_large_ones():
    weight = gaussian(4, 256)
    weight[:, :128] *= 1e8
    encoded = encode(weight, EncoderConfig(encoder="uniform", bits=8))
    decoded = encoded.decode()
    for columns in (slice(0, 128), slice(128, 256)):
        error = (decoded - weight)[:, columns].norm() / weight[:, columns].norm()
        assert error < 0.01, columns


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_kmeans_has_scikit_learns_inertia(bits):
    weight = gaussian()
    encoded = encode(weight, EncoderConfig(encoder="kmeans", bits=bits, restarts=1))
    points = weight.reshape(-1, 1).numpy()
    start = torch.linspace(float(weight.min()), float(weight.max()), 2**bits).reshape(-1, 1).numpy()
    reference = KMeans(2**bits, init=start, n_init=1, max_iter=300, tol=5e-6).fit(points)
    inertia = float((encoded.decode() - weight).square().sum())
    assert 0.9 * reference.inertia_ <= inertia <= 1.001 * reference.inertia_
    assert encoded.codebook.shape == (2**bits, 1)


def test_zero_group():
    weight = gaussian()
    weight[:, :128] = 0
    assert torch.equal(encode(weight, EncoderConfig(encoder="uniform")).decode()[:, :128], torch.zeros(24, 128))


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        *(({"encoder": "uniform", "bits": bits}, 0.03) for bits in (1, 2, 3, 4, 8)),
        ({"encoder": "uniform", "levels": 5, "group_size": 32}, 0.03),
        ({"encoder": "uniform", "bits": 3, "group_size": 0}, 0.1),  # the largest of all entries is a chance of its own
        *(({"encoder": "kmeans", "bits": bits}, 0.03) for bits in (1, 2, 4, 6)),
        ({"encoder": "kmeans", "levels": 5}, 0.03),
    ],
)
def test_expected_errors_are_those_of_gaussian_weights(settings, tolerance):
    config = EncoderConfig(**settings)
    weight = gaussian(1024, 1024)
    found = encode(weight, config).record.relative_error ** 2
    assert config.chosen.expected_error(config.level_count, config.settings) == pytest.approx(found, rel=tolerance)

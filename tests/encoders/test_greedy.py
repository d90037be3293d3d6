"""The paper's encoder against a plain float64 version with scikit-learn, and its odd cases."""

import math

import pytest
import torch
from sklearn.cluster import KMeans

from kquant_cli.bases import make_basis
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode, encoded_bytes
from kquant_cli.encoders.clustering import signed_sums

NO_ERROR = 1e-5


def greedy(**settings):
    return EncoderConfig(**{"encoder": "greedy", **settings})


ROWS = greedy(form="vector", rule="alternating")


def gaussian(rows=96, columns=128, seed=0):
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_error(weight, bits, start_shape, max_iter=60):
    """|W - W^| / |W| of arXiv 2404.09737, written out: dense DCT matrices, the greedy loop, scikit-learn's k-means."""
    rows, columns = weight.shape
    q1, q2 = make_basis("dct", rows).dense(), make_basis("dct", columns).dense()
    residual, u, v = weight / weight.norm(), torch.zeros_like(weight), torch.zeros_like(weight)
    for _ in range(max_iter):
        other = q1.T @ residual @ q2
        if residual.abs().sum() > other.abs().sum():
            step = residual.abs().mean() * residual.sign()
            u, residual = u + step, residual - step
        else:
            step = other.abs().mean() * other.sign()
            v, residual = v + step, residual - q1 @ step @ q2.T
        if residual.norm() < 1e-6:
            break
    points = torch.stack([u.flatten(), v.flatten()], 1)
    axes = [torch.linspace(float(points[:, d].min()), float(points[:, d].max()), start_shape[d]) for d in (0, 1)]
    start = torch.cartesian_prod(*axes).double()
    means = KMeans(2**bits, init=start.numpy(), n_init=1, max_iter=300, tol=5e-6).fit(points.numpy())
    centres = torch.from_numpy(means.cluster_centers_)[torch.from_numpy(means.labels_).long()]
    decoded = weight.norm() * (centres[:, 0].view_as(weight) + q1 @ centres[:, 1].view_as(weight) @ q2.T)
    return float((decoded - weight).norm() / weight.norm())


@pytest.mark.parametrize(("bits", "start_shape"), [(2, (2, 2)), (4, (4, 4)), (6, (8, 8))])
def test_error_is_the_papers(bits, start_shape):
    weight = gaussian()
    encoded = encode(weight, greedy(bits=bits, restarts=1))
    expected = paper_error(weight, bits, start_shape)
    assert 0.95 * expected <= encoded.record.relative_error <= 1.01 * expected  # k-means may end in another optimum
    assert encoded.record.converged
    assert encoded.record.trace[-1] < 1e-6
    assert len(encoded.record.trace) == encoded.record.iterations


def test_the_stated_error_is_that_of_decode():
    weight = gaussian(40, 56).float()
    for config in (greedy(), greedy(form="vector"), EncoderConfig(encoder="uniform", bits=3)):
        encoded = encode(weight, config)
        error = float((encoded.decode(torch.float64) - weight).norm() / weight.norm())
        assert encoded.record.relative_error == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_exactly_2_to_the_bits_centroids(bits):
    for config in (
        greedy(bits=bits),
        greedy(bits=bits, init="peaks"),
        greedy(bits=bits, form="vector"),
    ):
        encoded = encode(gaussian(32, 48), config)
        assert encoded.codebook.shape == (2**bits, 2)
        assert int(encoded.codes.max()) < 2**bits


def test_more_bits_less_error():
    errors = [encode(gaussian(), greedy(bits=bits)).record.relative_error for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.06


@pytest.mark.parametrize("rule", ["greedy", "alternating"])
@pytest.mark.parametrize("form", ["matrix", "vector"])
@pytest.mark.parametrize("init", ["grid", "kmeans++", "peaks"])
def test_every_combination_is_near_the_default(rule, form, init):
    """But a greedy choice row by row: some rows begin with u, others with v, and one codebook serves neither well."""
    error = encode(gaussian(), greedy(rule=rule, form=form, init=init)).record.relative_error
    expected = encode(gaussian(), greedy()).record.relative_error
    assert (
        error < 2.2 * expected if (form, rule) == ("vector", "greedy") else error == pytest.approx(expected, rel=0.25)
    )


def test_restarts_never_hurt_and_seeds_matter():
    one = encode(gaussian(), greedy(bits=3, init="kmeans++", restarts=1))
    more = encode(gaussian(), greedy(bits=3, init="kmeans++", restarts=4))
    other = encode(gaussian(), greedy(bits=3, init="kmeans++", seed=5))
    assert more.record.relative_error <= one.record.relative_error * 1.01
    assert not torch.equal(one.codebook, other.codebook)


def test_same_settings_same_bytes():
    for config in (greedy(init="kmeans++"), greedy(basis="butterfly", seed=3)):
        first, second = (encode(gaussian().float(), config).to_tensors() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_peaks_are_sums_of_the_first_steps():
    assert signed_sums(torch.tensor([2.0, 0.5])).tolist() == [-2.5, -1.5, 1.5, 2.5]
    assert signed_sums(torch.zeros(0)).tolist() == [0.0]


def test_two_valued_matrix_is_exact():
    """|R|_1 is largest where all magnitudes are equal: one step, two points, no error."""
    signs = gaussian().sign() * 0.3
    encoded = encode(signs, greedy(bits=1, basis="dct"))
    assert encoded.record.iterations == 1
    assert encoded.record.relative_error < NO_ERROR


@pytest.mark.parametrize("config", [greedy(), ROWS, EncoderConfig(encoder="kmeans")])
def test_zero_rows_and_zero_matrices(config):
    assert torch.equal(encode(torch.zeros(8, 16), config).decode(), torch.zeros(8, 16))
    weight = gaussian(16, 24).float()
    weight[3] = 0
    decoded = encode(weight, config).decode()
    assert torch.isfinite(decoded).all()
    assert float((decoded - weight).norm() / weight.norm()) < 0.2


def test_fewer_points_than_centroids():
    encoded = encode(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), greedy(bits=6, basis="hadamard"))
    assert encoded.codebook.shape == (64, 2)
    assert encoded.record.relative_error < 1e-3


def test_not_converged_is_said():
    record = encode(gaussian(), greedy(max_iter=3, restarts=1, kmeans_iter=10)).record
    assert record.converged is False
    assert record.iterations == 3


def test_half_precision_and_float64_sources():
    weight = gaussian(32, 32)
    assert encode(weight.half(), greedy()).layout.dtype == "float16"
    assert encode(weight.bfloat16(), greedy()).layout.dtype == "bfloat16"
    assert encode(weight, greedy()).layout.dtype == "float64"


def test_refuses_what_is_no_weight():
    with pytest.raises(ValueError, match="not finite"):
        encode(torch.tensor([[1.0, math.nan]]), greedy())
    with pytest.raises(ValueError, match="expected a matrix"):
        encode(torch.zeros(4), greedy())


@pytest.mark.parametrize(
    "config",
    [
        greedy(),
        greedy(form="vector", bits=3),
        EncoderConfig(encoder="uniform"),
        EncoderConfig(encoder="kmeans"),
    ],
)
def test_planned_bytes_are_the_stored_bytes(config):
    stored = encode(gaussian(24, 300).float(), config).to_tensors().values()
    assert encoded_bytes((24, 300), config) == sum(t.numel() * t.element_size() for t in stored)


@pytest.mark.parametrize("factor", [1e-25, 1e25])
@pytest.mark.parametrize("changes", [{}, {"form": "vector", "rule": "alternating"}, {"encoder": "kmeans"}])
def test_tiny_and_huge_weights(factor, changes):
    """Their squares are beyond float32, their encoding is not."""
    weight = gaussian(16, 32).float()
    expected = encode(weight, greedy(**changes)).record.relative_error
    assert encode(weight * factor, greedy(**changes)).record.relative_error == pytest.approx(expected, rel=0.05)


def test_a_parameter_may_be_given():
    for encoder in ("greedy", "kmeans", "uniform"):
        encoded = encode(torch.nn.Linear(32, 16).weight, EncoderConfig(encoder=encoder))
        assert not any(tensor.requires_grad for tensor in encoded.to_tensors().values())

"""Encoding in a metric: what is fed back, the loss, the scales, the damping, and matrices of which little is known."""

import math
from dataclasses import replace

import pytest
import torch

from kquant_cli.bases import CoupledBases, basis_for
from kquant_cli.bundle.staging import Staging
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import Metric, encode, encode_in_metric, encoded_bytes, unit_losses
from kquant_cli.encoders.annealed import in_metric
from kquant_cli.encoders.annealed.drive import drive_of
from kquant_cli.encoders.annealed.retries import anneal_with_retries

ROWS, COLUMNS = 48, 80
SEED = 3


def config(**settings):
    return EncoderConfig(**{"bits": 2, "effort": "fast", "seed": SEED, **settings})


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(rows=ROWS, columns=COLUMNS, seed=0):
    return torch.randn(rows, columns, generator=draws(seed))


def metric_of(columns=COLUMNS, rows=ROWS, tokens=2000, seed=1, decay=3.0):
    """Moments of inputs with a few loud directions, in halves, and outputs that differ by a factor of some hundreds."""
    draw = draws(seed)
    loud = torch.linalg.qr(torch.randn(columns, columns, generator=draw)).Q * torch.logspace(0, -decay / 2, columns)
    inputs = torch.randn(tokens, columns, generator=draw) @ loud.T
    first, second = (part.T @ part for part in inputs.split(-(-tokens // 2)))
    return Metric(first, second, torch.exp(1.5 * torch.randn(rows, generator=draw)))


def loss(error, metric):
    """sum_i g_i e_i H e_i^T, in float64."""
    error, inputs = error.double(), metric.first.double() + metric.second.double()
    return float(torch.einsum("i,ij,jk,ik->", metric.outputs.double(), error, inputs, error))


def relative_loss(weight, encoded, metric):
    return loss(encoded.decode(torch.float64) - weight.double(), metric) / loss(weight, metric)


def one(weight, metric, **settings):
    (encoded,) = encode_in_metric([weight], [metric], config(**settings))
    return encoded


def unit_factor(h):
    """U, strictly upper triangular, with h = (I + U) D (I + U)^T: from the last column to the first."""
    h, unit = h.clone(), torch.eye(len(h), dtype=h.dtype)
    for j in reversed(range(len(h))):
        unit[:j, j] = h[:j, j] / h[j, j]
        h[:j, :j] -= torch.outer(unit[:j, j], unit[:j, j]) * h[j, j]
    return unit - torch.eye(len(h), dtype=h.dtype)


def rotated(metric, settings, columns=COLUMNS):
    """R^T H R of both halves, in float64, of mean diagonal 1 together."""
    right = basis_for(in_metric._right(columns, settings.seed)).dense()
    both = [right.T @ half.double() @ right for half in (metric.first, metric.second)]
    size = float((both[0] + both[1]).diagonal().mean())
    return [half / size for half in both]


def held_out_loss(seen, held_out, damping, expected):
    """tr(Cov H) of errors E with E (I + U) = N: N white, of the energy `expected` of the columns that are wanted."""
    unit = unit_factor(seen + damping * seen.diagonal().mean() * torch.eye(len(seen), dtype=seen.dtype))
    energy = torch.ones(len(seen), dtype=seen.dtype)
    for j in range(len(seen)):
        energy[j] = 1 + expected * float((unit[:j, j].square() * energy[:j]).sum())
    back = torch.linalg.inv(torch.eye(len(seen), dtype=seen.dtype) + unit)
    return float(torch.trace(back.T @ torch.diag(energy) @ back @ held_out))


def best_damping(halves, expected):
    first, second = halves
    found = {d: held_out_loss(first, second, d, expected) + held_out_loss(second, first, d, expected)
             for d in in_metric.DAMPINGS}  # fmt: skip
    return min(found, key=found.get)


def feedback_of(halves, expected):
    damping = best_damping(halves, expected)
    return unit_factor(halves[0] + halves[1] + damping * torch.eye(len(halves[0]), dtype=torch.float64))


def row_scale(weight, outputs):
    """(|w_i|^2 / g_i)^(1/4), of geometric mean 1."""
    logarithms = (weight.double().square().sum(dim=1).log() - outputs.double().log()) / 4
    return (logarithms - logarithms.mean()).exp()


def step_of(encoded, scale, weight):
    """The unit in which the lines are annealed: that of the constant codebook, or the scaled matrix's own."""
    own = float((weight.double() / scale[:, None]).square().mean().sqrt())
    return own if encoded.layout.grid is None else 2.0**encoded.layout.exponent


@pytest.mark.parametrize("settings", [{}, {"bits": 4}, {"levels": 3}, {"levels": 6, "codebook": "product"}])
def test_the_loss_is_less_than_half_of_what_is_left_without_data(settings):
    weight, metric = gaussian(), metric_of()
    encoded = one(weight, metric, **settings)
    found = relative_loss(weight, encoded, metric)
    plain = relative_loss(weight, encode(weight, config(**settings)), metric)
    assert found < 0.5 * plain
    assert encoded.record.metric_loss == pytest.approx(found, rel=1e-3)
    error = (encoded.decode() - weight).norm() / weight.norm()
    assert encoded.record.relative_error == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"levels": 6, "codebook": "product"}], ids=["grid", "own codebook"])
def test_each_column_is_scaled_to_what_is_wanted_of_it_after_those_before(settings):
    """The column scales are least squares to w'_J + E_before U (I + U_JJ)^-1: with U from halves, all in float64."""
    weight, metric, choice = gaussian(), metric_of(), config(**settings)
    encoded = one(weight, metric, **settings)
    _, expected = drive_of(encoded.layout, ROWS, choice.settings)
    unit, scale = feedback_of(rotated(metric, choice.settings), expected), encoded.scale.double().squeeze(1)
    left = CoupledBases(ROWS, choice.seed)
    first, second = (basis_for(spec).dense() for spec in (left.first, left.second))
    right = basis_for(in_metric._right(COLUMNS, choice.seed)).dense()
    step = step_of(encoded, scale, weight)
    wanted_of_all = first.T @ (weight.double() / scale[:, None] / step) @ right
    book = encoded.codebook.double() / step
    u, v = book[:, 0][encoded.codes.long()], book[:, 1][encoded.codes.long()]
    decoded = u + first.T @ second @ v
    errors = wanted_of_all - decoded * encoded.col_scale.double()
    fits, plain = [], []
    for begin in range(0, COLUMNS, in_metric.STRETCH):
        now = slice(begin, min(begin + in_metric.STRETCH, COLUMNS))
        within = torch.eye(now.stop - begin, dtype=torch.float64) + unit[now, now]
        wanted = wanted_of_all[:, now] + errors[:, :begin] @ unit[:begin, now] @ torch.linalg.inv(within)
        power = decoded[:, now].square().sum(dim=0)
        fits.append((wanted * decoded[:, now]).sum(dim=0) / power)
        plain.append((wanted_of_all[:, now] * decoded[:, now]).sum(dim=0) / power)
    torch.testing.assert_close(encoded.col_scale.double(), torch.cat(fits), rtol=3e-3, atol=0)
    assert float((encoded.col_scale.double() - torch.cat(plain)).abs().max()) > 0.1  # which feedback alone explains


@pytest.mark.parametrize(("stretch", "most"), [(1, 1.1), (4, 1.25), (in_metric.STRETCH, 1.5)])
def test_the_loss_is_near_that_of_one_column_after_the_other(stretch, most, monkeypatch):
    """LDLQ as the papers have it, each column rounded by the annealing after the errors of all before, in float64."""
    monkeypatch.setattr(in_metric, "STRETCH", stretch)
    weight, metric, choice = gaussian(), metric_of(), config()
    encoded = one(weight, metric)
    drive, expected = drive_of(encoded.layout, ROWS, choice.settings)
    unit, scale = feedback_of(rotated(metric, choice.settings), expected), row_scale(weight, metric.outputs)
    left = CoupledBases(ROWS, choice.seed)
    first = basis_for(left.first).dense()
    right = basis_for(in_metric._right(COLUMNS, choice.seed)).dense()
    lines, errors = first.T @ (weight.double() / scale[:, None]) @ right, torch.zeros(ROWS, COLUMNS).double()
    for j in range(COLUMNS):
        wanted = lines[:, j] + errors[:, :j] @ unit[:j, j]
        size = wanted.square().mean().sqrt()
        codes, _ = anneal_with_retries((wanted / size).float().unsqueeze(0), left, drive, expected)
        u, v = (drive.codebook[:, part][codes.long()] for part in (0, 1))
        rounded = (u + left.couple(v)).double().squeeze(0)
        factor = (wanted @ rounded) / (rounded @ rounded)
        errors[:, j] = lines[:, j] - factor * rounded
    reference = loss(scale[:, None] * (first @ errors @ right.T), metric) / loss(weight, metric)
    assert relative_loss(weight, encoded, metric) < most * reference


def test_a_metric_that_knows_nothing_leaves_the_plain_error():
    weight, half = gaussian(96, 128), 0.5 * torch.eye(128)
    encoded = one(weight, Metric(half, half))
    plain = encode(weight, config(side="output"))
    assert encoded.record.relative_error == pytest.approx(plain.record.relative_error, rel=0.03)
    assert encoded.record.metric_loss == pytest.approx(encoded.record.relative_error**2, rel=1e-4)


def test_layout_bytes_and_decoding(tmp_path):
    """W^ = diag(scale) (A Cu diag(col_scale) + B Cv diag(col_scale)) R^T, of the planned size, and so after storing."""
    weight = gaussian().to(torch.bfloat16)
    for settings in ({"levels": 3}, {"levels": 6, "codebook": "product"}, {"bits": 8}):
        encoded = one(weight, metric_of(), **settings)
        choice = config(**settings)
        layout = encoded.layout
        assert replace(layout, exponent=0, dtype="float32") == choice.chosen.layout_in_metric(
            (ROWS, COLUMNS), choice.level_count, choice.settings
        )
        assert layout.dtype == "bfloat16"
        assert (encoded.scale.dtype, encoded.col_scale.dtype) == (torch.float16, torch.float16)
        tensors = encoded.to_tensors()
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        assert encoded_bytes((ROWS, COLUMNS), choice, in_metric=True) == size
        frame = layout.frame
        assert frame.right_u == frame.right_v
        a, b, r = (basis_for(spec).dense() for spec in (frame.left_u, frame.left_v, frame.right_u))
        u, v = (encoded.codebook.double()[:, part][encoded.codes.long()] for part in (0, 1))
        expected = encoded.scale.double() * ((a @ u + b @ v) * encoded.col_scale.double()) @ r.T
        torch.testing.assert_close(encoded.decode(torch.float64), expected, rtol=1e-9, atol=1e-9)
        staging = Staging(tmp_path / str(choice.level_count), "owner")
        staging.save("m", layout, tensors, encoded.record)
        found = staging.find("m")
        assert found.record == encoded.record
        assert torch.equal(found.encoded().decode(), encoded.decode())


def test_row_scales_even_out_what_an_error_costs():
    weight, metric = gaussian() * torch.logspace(-1, 1, ROWS)[:, None], metric_of()
    found = one(weight, metric).scale.double().squeeze(1)
    torch.testing.assert_close(found, row_scale(weight, metric.outputs), rtol=1e-3, atol=0)
    limit = one(weight * torch.logspace(-9, 9, ROWS)[:, None], metric).scale.double()
    assert float(limit.max()) <= in_metric.ROW_LIMIT * 1.001
    assert float(limit.min()) >= 0.999 / in_metric.ROW_LIMIT
    without = one(weight, replace(metric, outputs=None)).scale.double().squeeze(1)
    torch.testing.assert_close(without, row_scale(weight, torch.ones(ROWS)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("tokens", [48, 120, 400, 20000])
def test_the_damping_is_what_costs_the_other_half_least(tokens):
    halves, expected = rotated(metric_of(tokens=tokens), config().settings), 0.08
    first, second = (half.float().unsqueeze(0) for half in halves)
    found = in_metric._feedback(first, second, expected)[0].double()
    distances = {
        damping: float((found - unit_factor(halves[0] + halves[1] + damping * torch.eye(COLUMNS).double())).norm())
        for damping in in_metric.DAMPINGS
    }
    chosen = min(distances, key=distances.get)
    assert distances[chosen] < 1e-3 * float(found.norm())
    assert chosen == best_damping(halves, expected)


def test_halves_that_disagree_are_damped_more():
    settings = config().settings
    few, many = (best_damping(rotated(metric_of(tokens=n), settings), 0.08) for n in (48, 20000))
    assert few > 3 * many


def _rank_one(metric):
    x = torch.linspace(-1, 2, COLUMNS)
    return replace(metric, first=torch.outer(x, x), second=torch.outer(x, x))


def _dead_channels(metric):
    alive = (torch.arange(COLUMNS) % 3 > 0).float()
    return replace(metric, first=metric.first * alive * alive[:, None], second=metric.second * alive * alive[:, None])


def _one_half(metric):
    return replace(metric, second=torch.zeros_like(metric.second))


def _no_output(metric):
    return replace(metric, outputs=torch.zeros_like(metric.outputs))


def _tiny(metric):
    return Metric(1e-20 * metric.first, 1e-20 * metric.second, 1e-20 * metric.outputs)


@pytest.mark.parametrize("change", [_rank_one, _dead_channels, _one_half, _no_output, _tiny])
@pytest.mark.parametrize("levels", [4, 6])
def test_metrics_that_say_little(change, levels):
    """All is finite, and what the metric sees is no worse than without it."""
    weight, metric = gaussian(), change(metric_of())
    encoded = one(weight, metric, levels=levels, codebook="ring" if levels == 4 else "product")
    decoded = encoded.decode()
    assert torch.isfinite(decoded).all()
    assert encoded.record.relative_error < 1
    if change is not _no_output:
        plain = encode(weight, config(levels=levels))
        scaled = metric if change is not _tiny else metric_of()
        assert relative_loss(weight, encoded, scaled) < relative_loss(weight, plain, scaled)
    else:
        assert encoded.record.metric_loss == 0


def test_rows_of_zeros_stay_next_to_zero():
    weight = gaussian()
    weight[5:9] = 0
    encoded = one(weight, metric_of())
    decoded = encoded.decode()
    assert torch.isfinite(decoded).all()
    assert float(decoded[5:9].square().mean()) < 0.01 * float(weight[9:].square().mean())
    assert relative_loss(weight, encoded, metric_of()) < relative_loss(weight, encode(weight, config()), metric_of())


@pytest.mark.parametrize("settings", [{}, {"levels": 6, "codebook": "product"}])
def test_a_zero_weight_is_zero(settings):
    encoded = one(torch.zeros(ROWS, COLUMNS), metric_of(), **settings)
    assert not encoded.decode().any()
    assert (encoded.record.relative_error, encoded.record.metric_loss) == (0, 0)


@pytest.mark.parametrize("settings", [{}, {"levels": 6, "codebook": "product"}])
def test_several_matrices_at_once_are_what_each_is_alone(settings):
    """So that a run that was interrupted, and puts others together, ends in the same bytes."""
    weights = [0.3**n * gaussian(seed=n) for n in range(5)]
    metrics = [metric_of(seed=10 + n, tokens=60 + 500 * n) for n in range(5)]
    together = encode_in_metric(weights, metrics, config(**settings))
    for weight, metric, found in zip(weights, metrics, together, strict=True):
        alone = one(weight, metric, **settings)
        assert found.layout == alone.layout
        assert found.record == alone.record
        assert all(torch.equal(found.to_tensors()[name], tensor) for name, tensor in alone.to_tensors().items())


def test_threads_change_no_byte():
    weights, metrics = [gaussian(seed=n) for n in range(5)], [metric_of(seed=n) for n in range(5)]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append([one.to_tensors() for one in encode_in_metric(weights, metrics, config())])
    finally:
        torch.set_num_threads(threads)
    for single, shared in zip(*found, strict=True):
        assert all(torch.equal(single[name], shared[name]) for name in single)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_unit_losses_are_the_loss_by_error(scale):
    """With errors that are white in each column, relative to what is encoded, after a feedback without damping."""
    weight, metric, choice = gaussian(), metric_of(), config()
    metric = Metric(scale * metric.first, scale * metric.second, metric.outputs)
    (found,) = unit_losses([weight], [metric], choice)
    right = basis_for(in_metric._right(COLUMNS, choice.seed)).dense()
    r = row_scale(weight, metric.outputs)
    lines = (weight.double() / r[:, None]) @ right
    h = right.T @ (metric.first + metric.second).double() @ right
    back = torch.linalg.inv(unit_factor(h) + torch.eye(COLUMNS).double())
    outputs = (metric.outputs / metric.outputs.mean()).double()
    total, rounds = 0.0, 200
    for n in range(rounds):
        noise = torch.randn(ROWS, COLUMNS, dtype=torch.float64, generator=draws(100 + n))
        errors = r[:, None] * (noise * lines.square().mean(dim=0).sqrt() @ back) @ right.T
        total += loss(errors, Metric(metric.first, metric.second, outputs)) / rounds
    assert found == pytest.approx(total, rel=0.1)
    assert math.isfinite(found)

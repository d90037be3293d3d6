"""The divergence against float64 log-softmaxes, however near the distributions are."""

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from kquant_cli.calibration.output_change import ENTRIES, Reference
from kquant_cli.errors import KQuantError


@pytest.mark.parametrize("step", [1e-4, 1e-3, 1e-1, 1.0, 10.0, 100.0])
def test_is_the_mean_kl_of_the_distributions(step: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2, 7, ENTRIES // 4, generator=draw) + 20  # several pieces
    moved = logits + step * torch.randn(logits.shape, generator=draw)
    first, second = (log_softmax(z.double(), -1).flatten(0, 1) for z in (logits, moved))
    expected = float(kl_div(second, first, log_target=True, reduction="batchmean"))
    assert Reference.of({"logits": logits}, "m").divergence({"logits": moved}) == pytest.approx(expected, rel=2e-3)


def test_does_not_see_a_constant_added_to_all_logits() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    assert abs(Reference.of({"logits": logits}, "m").divergence({"logits": logits + 0.5})) < 1e-12
    assert Reference.of({"logits": logits}, "m").divergence({"logits": logits.clone()}) == 0


def test_question_answering_has_a_distribution_over_positions() -> None:
    draw = torch.Generator().manual_seed(0)
    start, end, moved = (torch.randn(3, 9, generator=draw) for _ in range(3))
    found = Reference.of({"start_logits": start, "end_logits": end}, "m").divergence(
        {"start_logits": moved, "end_logits": end}
    )
    expected = kl_div(moved.log_softmax(-1), start.log_softmax(-1), log_target=True, reduction="batchmean") / 2
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_features_are_compared_by_their_relative_squared_change() -> None:
    hidden = torch.ones(2, 3, 4)
    assert Reference.of({"last_hidden_state": hidden}, "m").divergence(
        {"last_hidden_state": 1.1 * hidden}
    ) == pytest.approx(0.01, rel=1e-5)


def test_outputs_of_no_use_are_refused() -> None:
    with pytest.raises(KQuantError, match="m gives neither logits nor hidden states"):
        Reference.of({"loss": torch.ones(1)}, "m")
    with pytest.raises(KQuantError, match="m computes numbers that are not finite"):
        Reference.of({"logits": torch.full((1, 2), torch.nan)}, "m")

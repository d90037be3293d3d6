"""Expected errors between those that were measured, and what every encoder expects."""

import math

import pytest

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import ENCODERS
from kquant_cli.encoders.expected_error import interpolated_error


def test_measured_errors_are_returned_as_they_are():
    table = {2: 0.3, 3: 0.137, 16: 0.006}
    for levels, error in table.items():
        assert interpolated_error(levels, table) == pytest.approx(error, rel=1e-12)


def test_between_them_the_logarithm_is_linear_in_the_bits():
    table = {4: 1e-1, 16: 1e-3}
    assert interpolated_error(8, table) == pytest.approx(1e-2)
    assert interpolated_error(64, table) == pytest.approx(1e-5)  # and so beyond the ends
    assert interpolated_error(2, table) == pytest.approx(1.0)
    assert math.log(interpolated_error(10, {8: 0.021, 12: 0.01})) == pytest.approx(
        math.log(0.021) + math.log2(10 / 8) / math.log2(12 / 8) * math.log(0.01 / 0.021)
    )


def test_impossible_tables_and_levels_are_refused():
    for table in ({4: 0.1}, {4: 0.1, 8: 0.0}):
        with pytest.raises(ValueError, match="two or more positive errors"):
            interpolated_error(4, table)
    with pytest.raises(ValueError, match="levels must be 2 or more"):
        interpolated_error(1, {2: 0.3, 3: 0.1})


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_expects_less_error_of_more_levels(name):
    encoder, settings = ENCODERS[name], EncoderConfig(encoder=name).settings
    possible = [levels for levels in range(2, 257) if encoder.refusal(levels, settings) is None]
    errors = [encoder.expected_error(levels, settings) for levels in possible]
    assert all(0.5 * 4.0 ** -math.log2(levels) < error < 1 for levels, error in zip(possible, errors, strict=True))
    assert all(0 < more < fewer for fewer, more in zip(errors[:-1:8], errors[8::8], strict=False))

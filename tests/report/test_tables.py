"""The drawing of a trace, and what the tables must not hide."""

import pytest
from rich.console import Console

from kquant_cli.report.tables import BARS, drawing, totals_table

SUMMARY = {
    "source": {"name": "org/model", "revision": "0123456789abcdef"},
    "encoded_weights": 900,
    "parameters": 1000,
    "encoded_share": 0.9,
    "bits_per_weight": 4.125,
    "bits_per_weight_model": 5.3125,
    "source_bytes": 2_000_000,
    "bytes": 500_000,
    "ratio": 4.0,
    "relative_squared_error": 0.0164,
    "not_converged": [f"layer.{i}" for i in range(6)],
    "layers": [{}] * 9,
    "notes": ["61% of the parameters are fused experts and stay dense"],
}


def test_drawing_is_logarithmic():
    assert drawing([1.0, 1e-3, 1e-6]) == BARS[7] + BARS[4] + BARS[0]  # three decades of six: half the height
    assert drawing([1e-9]) == BARS[0]
    assert drawing([]) == ""
    assert len(drawing([0.5] * 6000)) == 10
    falling = drawing([0.6**i for i in range(28)])
    assert list(falling) == sorted(falling, reverse=True)
    assert (falling[0], falling[-1]) == (BARS[-1], BARS[0])


def test_totals_say_everything():
    console = Console(record=True, width=120)
    console.print(totals_table(SUMMARY))
    text = console.export_text()
    for part in (
        "org/model at 0123456789ab",
        "900 of 1,000 parameters (90.0%)",
        "4.125 an encoded weight, 5.312 a parameter",
        "2.00 MB -> 0.50 MB, 4.00 times smaller",
        "0.01640",
        "6 of 9 layers: layer.0, layer.1, layer.2, layer.3 and 2 more",
        "61% of the parameters",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["[bold]", "a[/]b"])
def test_names_are_no_markup(name):
    console = Console(record=True, width=120)
    console.print(totals_table({**SUMMARY, "source": {"name": name, "revision": None}}))
    assert name in console.export_text()

"""Every encoder at level counts that are no power of two, through a bundle, with and without channel scales."""

import pytest
from whole_runs import assert_decodes, compress, impose_scales

from kquant_cli.encoders import ENCODERS
from kquant_cli.packing import row_bytes

COUNTS = {"q_proj": 3, "k_proj": 5, "v_proj": 6, "o_proj": 12}


@pytest.mark.parametrize("stats", ["none", "random"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_level_counts(tiny_llama, tmp_path, monkeypatch, encoder, stats):
    impose_scales(monkeypatch, first=1.5)
    rules = tuple({"match": f"*.{name}", "levels": levels} for name, levels in COUNTS.items())
    bundle = compress(
        tiny_llama,
        tmp_path / "b",
        encoder=encoder,
        calibration=stats,
        levels=20,
        layers=rules,
        max_iter=50,
        kmeans_iter=20,
    )
    for name, layout in bundle.layouts.items():
        levels = COUNTS.get(name.rpartition(".")[2], 20)
        rows, columns = layout.shape
        encoded = bundle.encoded(name)
        assert layout.levels == levels == len(encoded.codebook)
        assert bundle.infos[f"{name}.weight_codes"].shape == (rows, row_bytes(columns, levels))
        assert encoded.codes.unique().tolist() == list(range(levels))  # no centroid is there for nothing
        assert layout.channel_scale == (stats == "random")
    assert_decodes(bundle, tiny_llama)
    errors = {
        name: bundle.manifest["matrices"][f"model.layers.0.self_attn.{name}"]["relative_error"] for name in COUNTS
    }
    assert errors["q_proj"] > errors["v_proj"] > errors["o_proj"]

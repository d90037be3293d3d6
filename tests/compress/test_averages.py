"""A fractional number of bits: levels matrix by matrix, never more in all than was asked for."""

import pytest
import tiny_text_models
from whole_runs import assert_decodes, compress, encoded_bits, scales

from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline, preparation
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig, EncoderConfig
from kquant_cli.encoders import ENCODERS
from kquant_cli.errors import KQuantError

FEW = {"max_iter": 12, "kmeans_iter": 10, "restarts": 1, "group_size": 32}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("bits", [2.75, 4.5])
def test_never_above_and_as_near_below_as_the_sizes_allow(tiny_llama, tmp_path, encoder, bits):
    """Codes, codebooks, scales and channel scales count, as they lie in the files."""
    said: list[str] = []
    bundle = compress(tiny_llama, tmp_path / "b", said.append, encoder=encoder, bits=bits, **FEW)
    assert bits - 0.06 < encoded_bits(bundle) <= bits
    plan = bundle.manifest["allocation"]
    assert (plan["target_bits"], plan["reached_bits"]) == (bits, encoded_bits(bundle))
    assert {name: facts["levels"] for name, facts in plan["matrices"].items()} == {
        name: layout.levels for name, layout in bundle.layouts.items()
    }
    assert {name: facts["nbytes"] for name, facts in plan["matrices"].items()} == {
        name: facts["bytes"] for name, facts in bundle.manifest["matrices"].items()
    }
    assert len({layout.levels for layout in bundle.layouts.values()}) > 1
    assert scales(bundle)
    assert any(sentence.endswith(f"{encoded_bits(bundle):.4f} bits a weight of {bits}") for sentence in said)
    assert_decodes(bundle, tiny_llama)


def test_sensitive_matrices_get_more(tiny_llama, tmp_path):
    plan = compress(tiny_llama, tmp_path / "b", bits=4.5).manifest["allocation"]
    alike = [facts for name, facts in plan["matrices"].items() if name.endswith((".o_proj", ".q_proj"))]
    least, most = (pick(alike, key=lambda facts: facts["sensitivity"]) for pick in (min, max))
    assert most["sensitivity"] > 1.5 * least["sensitivity"]
    assert most["levels"] > least["levels"]


def test_rules_are_kept_and_count(tiny_llama, tmp_path):
    rules = ({"match": "*.down_proj", "bits": 5}, {"match": "*.o_proj", "encoder": "uniform", "levels": 3})
    bundle = compress(tiny_llama, tmp_path / "b", bits=4.5, layers=rules)
    assert {layout.levels for name, layout in bundle.layouts.items() if "down_proj" in name} == {32}
    assert {layout.levels for name, layout in bundle.layouts.items() if "o_proj" in name} == {3}
    assert 4.4 < encoded_bits(bundle) <= 4.5
    assert_decodes(bundle, tiny_llama)


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"codebook": "product"}, lambda levels: levels % 2 == 0),
        ({"encoder": "kmeans", "init": "peaks"}, lambda levels: levels & (levels - 1) == 0),
    ],
)
def test_only_levels_that_the_settings_have_points_for(tiny_llama, tmp_path, settings, fits):
    bundle = compress(
        tiny_llama, tmp_path / "b", bits=3.3, **{"effort": "fast", "restarts": 1, "kmeans_iter": 10} | settings
    )
    assert all(fits(layout.levels) for layout in bundle.layouts.values())
    assert encoded_bits(bundle) <= 3.3


def test_a_scale_is_searched_at_the_levels_nearest_to_the_average():
    """Before any are allotted, since sensitivities depend on the scale."""
    for settings, levels in (({}, 10), ({"init": "peaks"}, 8)):
        config = EncoderConfig(encoder="kmeans", bits=3.3, **settings)
        assert preparation._whole(config).level_count == levels


def test_too_few_bits_are_a_sentence_and_leave_no_unfinished_work(tiny_llama, tmp_path):
    with pytest.raises(KQuantError, match=r"`bits` is 1.5, less than the fewest levels take") as caught:
        compress(tiny_llama, tmp_path / "b", bits=1.5)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} <= {"b.stats.safetensors", "b.sensitivity.json"}


def test_sensitivities_of_a_text(tmp_path):
    source, text = tiny_text_models.make(tmp_path / "source", "llama"), tmp_path / "text.txt"
    text.write_text(tiny_text_models.text(6000))
    settings = {"encoder": "uniform", "bits": 4.5, "calibration": str(text)}
    assert compress(source, tmp_path / "b", **settings).manifest["allocation"]["sensitivities"] == str(text)
    text.write_text(tiny_text_models.text(6000, seed=4))
    with pytest.raises(KQuantError, match="is a bundle of other settings or of another source"):
        pipeline.compress(make_plan(open_checkpoint(source), CompressConfig(**settings)), tmp_path / "b")


def test_a_checkpoint_without_a_tokenizer_leaves_no_unfinished_work(tiny_llama, tmp_path):
    (tmp_path / "text.txt").write_text(tiny_text_models.text())
    with pytest.raises(KQuantError, match="no tokenizer"):
        compress(tiny_llama, tmp_path / "b", calibration=str(tmp_path / "text.txt"))
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]

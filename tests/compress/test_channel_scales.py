"""Channel scales in whole runs: measured once, stored once for layers that share an input, and undone by decoding."""

import json
import shutil

import pytest
import tiny_models
import tiny_text_models
import torch
from safetensors.torch import load_file
from whole_runs import assert_decodes, compress, encoded_bits, hashes, impose_scales, scales

from kquant_cli.calibration import InputStatistics, moments_cache, statistics_path
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig
from kquant_cli.errors import KQuantError

ATTENTION, FEED_FORWARD = "model.layers.0.self_attn", "model.layers.0.mlp"


def stop(done: pipeline.Progress) -> None:
    if done.job.matrix.name.endswith("1.mlp.gate_proj"):
        raise KeyboardInterrupt


@pytest.fixture
def text_model(tmp_path):
    return tiny_text_models.make(tmp_path / "source", "llama")


def test_layers_that_share_an_input_store_one_scale(tiny_llama, tmp_path):
    bundle = compress(tiny_llama, tmp_path / "b")
    owners = {f"{ATTENTION}.{part}": f"{ATTENTION}.k_proj" for part in ("k_proj", "q_proj", "v_proj")}
    owners |= {f"{FEED_FORWARD}.{part}": f"{FEED_FORWARD}.gate_proj" for part in ("gate_proj", "up_proj")}
    owners |= {name: name for name in (f"{ATTENTION}.o_proj", f"{FEED_FORWARD}.down_proj")}
    for name, owner in owners.items():
        layout = bundle.layouts[name]
        assert layout.channel_scale
        assert layout.channel_scale_from == (None if owner == name else owner)
        assert torch.equal(bundle.encoded(name).channel_scale, bundle.encoded(owner).channel_scale)
    assert {name for name in scales(bundle) if ".0." in name} == set(owners.values())
    stored = bundle.infos[f"{ATTENTION}.k_proj.weight_channel_scale"]
    assert (stored.dtype, stored.shape) == (torch.float16, (32,))
    assert_decodes(bundle, tiny_llama, most=0.12)


def test_a_scale_counts_once(tiny_llama, tmp_path):
    with_scales, without = (compress(tiny_llama, tmp_path / stats, calibration=stats) for stats in ("random", "none"))
    sizes = [bundle.manifest["totals"]["encoded_bytes"] for bundle in (with_scales, without)]
    inputs = 2 * (32 + 32 + 32 + 64)  # of attention, its output, the feed-forward part and its output, in two blocks
    assert sizes[0] - sizes[1] == 2 * inputs  # float16
    weights = with_scales.manifest["totals"]["encoded_weights"]
    assert 8 * sizes[0] / weights == encoded_bits(with_scales)
    assert sizes[0] == sum(facts["bytes"] for facts in with_scales.manifest["matrices"].values())


@pytest.mark.parametrize("arch", ["llama", "gpt2"])  # GPT-2 stores its weights the other way round
def test_scales_are_those_of_the_closed_form(arch, tmp_path):
    """d_j = (m_j / c_j)^(1/4) up to a factor, m_j the input's second moments, c_j the energy of column j of all."""
    source = tiny_models.make(arch, tmp_path / "source")
    bundle = compress(source, tmp_path / "b")
    weights = load_file(source / "model.safetensors")
    statistics = InputStatistics.load(statistics_path(tmp_path / "b"))
    assert {name for group in statistics.groups for name in group.members} == set(bundle.layouts)
    for group in statistics.groups:
        parts = [weights[f"{name}.weight"].double() for name in group.members]
        parts = [
            part.T if bundle.layouts[name].transposed else part for part, name in zip(parts, group.members, strict=True)
        ]
        energy = torch.cat(parts).square().sum(dim=0)
        expected = (group.second_moments / energy) ** 0.25
        for name in group.members:
            found = bundle.encoded(name).channel_scale.double()
            torch.testing.assert_close(found / found.mean(), expected / expected.mean(), rtol=2e-3, atol=0)
    assert any(layout.transposed for layout in bundle.layouts.values()) == (arch == "gpt2")
    assert_decodes(bundle, source, most=0.12)


def test_loud_channels_get_small_errors(tmp_path):
    """An input whose channels differ by a factor of 100: its loud channels are encoded more finely."""
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[:4] *= 100
    model.save_pretrained(tmp_path / "source")
    errors = []
    for stats in ("random", "none"):
        bundle = compress(tmp_path / "source", tmp_path / stats, calibration=stats)
        name = f"{ATTENTION}.q_proj"
        weight = load_file(tmp_path / "source" / "model.safetensors")[f"{name}.weight"]
        errors.append(float((bundle.weight(name) - weight)[:, :4].norm() / weight[:, :4].norm()))
    assert errors[0] < errors[1] / 2


def test_decompress_and_eval_of_scaled_bundles(kquant, text_model, tmp_path):
    bundle = compress(text_model, tmp_path / "b")
    assert scales(bundle)
    assert kquant("decompress", tmp_path / "b", "-o", tmp_path / "dense").code == 0
    dense = load_file(next((tmp_path / "dense").glob("*.safetensors")))
    assert set(dense) == set(load_file(text_model / "model.safetensors"))
    for name in bundle.layouts:
        assert torch.equal(dense[f"{name}.weight"], bundle.encoded(name).decode())
    (tmp_path / "text.txt").write_text(tiny_text_models.text())
    found = []
    for folder in ("b", "dense"):
        args = ("--task", "text", "--data", tmp_path / "text.txt", "--json", tmp_path / "eval.json")
        assert kquant("eval", tmp_path / folder, *args).code == 0
        found.append(json.loads((tmp_path / "eval.json").read_text())["results"][0]["perplexity"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)  # from codes, and dense


def test_none_stores_and_measures_none(tiny_llama, tmp_path):
    bundle = compress(tiny_llama, tmp_path / "b", calibration="none")
    assert scales(bundle) == set()
    assert not any(layout.channel_scale for layout in bundle.layouts.values())
    assert bundle.manifest["statistics"] == {"source": "none"}
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def count_collections(monkeypatch):
    calls = []
    collect = moments_cache.collect
    monkeypatch.setattr(
        moments_cache, "collect", lambda *args, **options: calls.append(args) or collect(*args, **options)
    )
    return calls


def test_a_run_that_goes_on_does_not_measure_again(tiny_llama, tmp_path, monkeypatch):
    calls = count_collections(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        compress(tiny_llama, tmp_path / "cut", progress=stop)
    assert len(calls) == 1
    resumed = []
    compress(tiny_llama, tmp_path / "cut", progress=lambda done: resumed.append(done.resumed))
    assert len(calls) == 1
    assert any(resumed) and not all(resumed)
    compress(tiny_llama, tmp_path / "whole")
    assert len(calls) == 2
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")


def test_unfinished_work_of_other_scales_is_not_mixed_in(tiny_llama, tmp_path, monkeypatch):
    """A matrix divided by the scale that another was encoded with would decode to nonsense."""
    with pytest.raises(KeyboardInterrupt):
        compress(tiny_llama, tmp_path / "b", progress=stop)
    impose_scales(monkeypatch)
    resumed = []
    bundle = compress(tiny_llama, tmp_path / "b", progress=lambda done: resumed.append(done.resumed))
    assert not any(resumed)
    assert_decodes(bundle, tiny_llama)


@pytest.mark.parametrize("settings", [{}, {"levels": 6}, {"bits": 2.5}, {"encoder": "uniform"}])
def test_same_run_same_bytes(tiny_llama, tmp_path, settings):
    """Measured anew beside each of the two."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        compress(tiny_llama, tmp_path / name / "b", **settings)
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")


def test_a_text_is_part_of_what_a_bundle_is(text_model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(tiny_text_models.text())
    settings = {"effort": "fast", "side": "input", "calibration": str(text)}
    bundle = compress(text_model, tmp_path / "b", **settings)
    assert bundle.manifest["statistics"]["source"].startswith("text.txt (SHA-256 ")
    plan = make_plan(open_checkpoint(text_model), CompressConfig(**settings))
    assert not pipeline.compress(plan, tmp_path / "b")  # the very same is there
    text.write_text(tiny_text_models.text(seed=4))
    with pytest.raises(KQuantError, match="is a bundle of other settings or of another source"):
        pipeline.compress(plan, tmp_path / "b")
    text.unlink()
    with pytest.raises(KQuantError, match=r"text\.txt cannot be read .*: expected a UTF-8 text file"):
        pipeline.compress(plan, tmp_path / "b")


def test_an_unknown_architecture_is_encoded_without_scales_and_says_so(tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "zebra", "architectures": ["ZebraForCausalLM"]}
    (source / "config.json").write_text(json.dumps(config))
    said: list[str] = []
    bundle = compress(source, tmp_path / "b", say=said.append)
    assert said[0].startswith("warning: no channel scaling, which costs quality: ")
    assert "zebra" in said[0]
    assert any(note.startswith("no channel scaling, which costs quality") for note in bundle.manifest["notes"])
    assert bundle.manifest["statistics"] == {"source": "none"}
    assert scales(bundle) == set()
    assert_decodes(bundle, source)


def test_a_matrix_that_is_kept_takes_no_scale_away(tiny_llama, tmp_path):
    """With `keep` nobody knows whether the first of those that share will be encoded: each stores its own."""
    rules = ({"match": "*.q_proj", "encoder": "kmeans"}, {"match": "*.up_proj", "encoder": "uniform"})
    settings = {"encoder": "greedy", "max_iter": 3, "on_no_convergence": "keep", "layers": rules}
    bundle = compress(tiny_llama, tmp_path / "b", **settings)
    assert {name.rpartition(".")[2] for name in bundle.layouts} == {"q_proj", "up_proj"}
    for name, layout in bundle.layouts.items():
        assert layout.channel_scale == (name in scales(bundle))
        assert layout.channel_scale_from is None
    assert scales(bundle)
    assert_decodes(bundle, tiny_llama)


def test_a_fallback_of_the_first_of_those_that_share(tiny_llama, tmp_path, monkeypatch):
    impose_scales(monkeypatch)
    rules = ({"match": "*.q_proj", "encoder": "kmeans"},)
    settings = {"encoder": "greedy", "max_iter": 3, "on_no_convergence": "uniform:4", "layers": rules}
    bundle = compress(tiny_llama, tmp_path / "b", **settings)
    assert bundle.manifest["matrices"][f"{ATTENTION}.k_proj"]["outcome"] == "fallback"
    assert f"{ATTENTION}.k_proj" in scales(bundle)
    assert bundle.layouts[f"{ATTENTION}.q_proj"].channel_scale_from == f"{ATTENTION}.k_proj"
    assert_decodes(bundle, tiny_llama)


def test_energies_are_summed_on_the_encoders_device_and_each_weight_is_read_once(tiny_llama, tmp_path, monkeypatch):
    """For encoders that try scales on a sample of rows, too."""
    from kquant_cli.checkpoint import Checkpoint
    from kquant_cli.compress import preparation

    read, moved, original = [], [], Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name, **how: read.append(name) or original(self, name, **how))
    to = torch.Tensor.to

    def moving(tensor: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        if options.get("non_blocking"):
            moved.append(args[0])
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", moving)
    plan = make_plan(open_checkpoint(tiny_llama), CompressConfig(encoder="uniform"))
    statistics = InputStatistics(
        tuple(preparation.InputGroup((job.matrix.name,), torch.ones(job.matrix.shape[1])) for job in plan.jobs), "x", 9
    )
    monkeypatch.setattr(preparation, "load_or_collect", lambda *args, **options: statistics)
    preparation.prepare(plan, tmp_path / "b", "", device="cpu")
    assert sorted(read) == sorted(job.matrix.tensor for job in plan.jobs)
    assert moved == ["cpu"] * len(plan.jobs)

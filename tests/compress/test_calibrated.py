"""Whole runs that calibrate on text: what the manifest says, equal bytes, interruptions, fallbacks, averages."""

import json
import shutil
from types import SimpleNamespace

import pytest
import tiny_models
import tiny_text_models
import torch
from safetensors.torch import load_file, save_file
from whole_runs import assert_decodes, compress, encoded_bits, hashes, scales

from kquant_cli.allocation import fused_groups
from kquant_cli.bases import basis_for
from kquant_cli.calibration import memory
from kquant_cli.calibration.gradient_moments import GradientMoments
from kquant_cli.calibration.session import open_session
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline
from kquant_cli.compress.calibrated import NOT_FOUND, sensitivities
from kquant_cli.compress.plan import make_plan
from kquant_cli.compress.weights import read_weight
from kquant_cli.config import CompressConfig
from kquant_cli.demo import demo_text_path
from kquant_cli.encoders.annealed import in_metric
from kquant_cli.errors import KQuantError
from kquant_cli.hf.tokens import read_tokenizer
from kquant_cli.tuning import tune as tuning

FEW = {"calibration": "auto", "calibration_tokens": 1024, "bits": 2}
CPU = torch.device("cpu")


def calibrated(source, out, *args, tune_steps=0, **settings):
    return compress(source, out, *args, **{**FEW, "tune_steps": tune_steps, **settings})


def of_manifest(bundle):
    return {name: facts["metric_loss"] for name, facts in bundle.manifest["matrices"].items()}


def in_metric_of(bundle):
    """The matrices that were encoded in a metric: bases on both sides, both scales, and the loss in the manifest."""
    found = {name for name, layout in bundle.layouts.items() if layout.col_scale and layout.frame.left_u is not None}
    for name in found:
        layout = bundle.layouts[name]
        assert layout.scale == (layout.shape[0], 1)
        assert layout.frame.right_u == layout.frame.right_v is not None
        assert not layout.channel_scale
    assert found == {name for name, loss in of_manifest(bundle).items() if loss is not None}
    return found


@pytest.mark.parametrize("arch", ["llama", "opt", "gpt2"])
def test_a_whole_run(arch, tmp_path):
    source = tiny_models.make(arch, tmp_path / "source")
    bundle = calibrated(source, tmp_path / "b", tune_steps=2)
    manifest, kept = bundle.manifest, load_file(tmp_path / "b.text.safetensors")["ids"]
    assert in_metric_of(bundle) == set(bundle.layouts) == {job.matrix.name for job in plan_of(source).jobs}
    assert all(0 < loss < 0.2 for loss in of_manifest(bundle).values())
    assert manifest["statistics"]["source"] == "own"
    assert manifest["statistics"]["tokens"] == kept.numel() == 1024
    assert len(manifest["statistics"]["text_sha256"]) == 64
    assert (manifest["tuning"]["steps"], manifest["tuning"]["tuned"]) == (2, len(bundle.layouts))
    assert manifest["tuning"]["tokens"] == 2 * tuning.TOKENS
    assert scales(bundle) == set()
    assert all(layout.transposed == (arch == "gpt2") for layout in bundle.layouts.values())
    assert_stated(bundle, source)


def plan_of(source, **settings):
    return make_plan(open_checkpoint(source), CompressConfig(**{"effort": "fast", **FEW, **settings}))


def assert_stated(bundle, source):
    """The manifest's errors are those of what is stored, tuned scales included."""
    weights = load_file(source / "model.safetensors")
    for name, layout in bundle.layouts.items():
        weight = weights[f"{name}.weight"].float()
        weight = weight.T if layout.transposed else weight
        error = float((bundle.encoded(name).decode() - weight).norm() / weight.norm())
        assert bundle.manifest["matrices"][name]["relative_error"] == pytest.approx(error, rel=1e-4)


def divergence(source, bundle, ids):
    """The mean KL in nats a token of the decoded bundle to its source, in float64."""
    from kquant_cli.runtime.decoded_model import load_decoded

    ids = ids.long()
    with torch.no_grad():
        dense = load_decoded_or(source)(ids).logits.double().log_softmax(-1)
        decoded = load_decoded(bundle, "AutoModelForCausalLM", None, torch.float32)[0].eval()
        ours = decoded(ids).logits.double().log_softmax(-1)
    return float((dense.exp() * (dense - ours)).sum(-1).mean())


def load_decoded_or(source):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


def test_a_trained_model_at_two_bits_follows_its_source_better_on_a_text_it_has_not_seen(opt, tmp_path, monkeypatch):
    """The first block of the embedded model: calibration is better than none, and tuning better than calibration."""
    monkeypatch.setattr(tuning, "TOKENS", 1024)
    ids = read_tokenizer(opt)(demo_text_path().read_text(encoding="utf-8"))["input_ids"][: 8 * 128]
    ids, settings = torch.tensor(ids).view(8, 128), {"exclude": ("*.layers.[123].*",), "calibration_tokens": 4096}
    plain = compress(opt, tmp_path / "plain", bits=2, exclude=settings["exclude"])
    untuned = calibrated(opt, tmp_path / "untuned", **settings)
    tuned = calibrated(opt, tmp_path / "tuned", tune_steps=12, **settings)
    found = [divergence(opt, bundle, ids) for bundle in (plain, untuned, tuned)]
    assert found[1] < 0.85 * found[0]
    assert found[2] < 0.95 * found[1]
    assert of_manifest(tuned) == of_manifest(untuned)
    assert_stated(tuned, opt)
    before, stored = load_file(opt / "model.safetensors"), load_file(next((tmp_path / "tuned").glob("*.safetensors")))
    norm = "model.decoder.layers.0.final_layer_norm.weight"
    assert stored[norm].dtype == torch.float16
    assert not torch.equal(stored[norm], before[norm])


def test_the_same_seed_gives_the_same_bytes_and_another_others(tiny_llama, tmp_path):
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        (tmp_path / name).mkdir()
        calibrated(tiny_llama, tmp_path / name / "b", tune_steps=3, seed=seed)
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")
    digests = [hashes(tmp_path / name)["b.text.safetensors"] for name in ("first", "third")]
    assert digests[0] != digests[1]


@pytest.fixture(scope="module")
def whole(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    rules = ({"match": "*.o_proj", "levels": 3},)
    settings = {"layers": rules, "exclude": ("*1.mlp.up_proj*",), "include": ("lm_head.weight",)}
    calibrated(tiny_llama, folder / "b", tune_steps=4, **settings)
    return folder / "b", settings


@pytest.mark.parametrize("after", [1, 5, 12])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(whole, tiny_llama, tmp_path, after):
    """Among others then: matrices are put together as they come."""
    bundle, settings = whole
    told = []

    def stop(done):
        told.append(done)
        if len(told) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(tiny_llama, tmp_path / "b", progress=stop, tune_steps=4, **settings)
    again = []
    calibrated(tiny_llama, tmp_path / "b", progress=again.append, tune_steps=4, **settings)
    assert sum(done.resumed for done in again) >= after
    assert len(again) == len({done.job.matrix.name for done in again}) == 14
    assert hashes(tmp_path / "b") == hashes(bundle)


def test_a_tuning_that_is_stopped_goes_on_to_the_same_bytes(whole, tiny_llama, tmp_path, monkeypatch):
    bundle, settings = whole
    monkeypatch.setattr(tuning, "SAVED_EVERY", -1.0)
    plan = make_plan(
        open_checkpoint(tiny_llama), CompressConfig(**{"effort": "fast", **FEW, "tune_steps": 4, **settings})
    )

    def stop(what, done, total):
        if what.startswith("tuning") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.compress(plan, tmp_path / "b", stage=stop)
    assert (tmp_path / "b.part" / "tuning.safetensors").exists()
    steps, resumed = [], []
    stage = lambda what, done, total: steps.append((done, total)) if what.startswith("tuning") else None  # noqa: E731
    assert pipeline.compress(plan, tmp_path / "b", stage=stage, progress=lambda done: resumed.append(done.resumed))
    assert steps == [(3, 4), (4, 4)]  # the third was done, but not saved
    assert resumed == [True] * 14
    assert hashes(tmp_path / "b") == hashes(bundle)
    assert not (tmp_path / "b.part").exists()


def test_rules_and_matrices_outside_the_blocks(whole, tiny_llama):
    from kquant_cli.bundle import open_bundle

    bundle = open_bundle(whole[0])
    assert in_metric_of(bundle) == set(bundle.layouts) - {"lm_head"}
    assert "model.layers.1.mlp.up_proj" not in bundle.layouts
    assert {layout.levels for name, layout in bundle.layouts.items() if name.endswith("o_proj")} == {3}
    assert scales(bundle) == {"lm_head"}  # which has the channel scale of random tokens
    assert bundle.manifest["tuning"]["tuned"] == 13
    assert_stated(bundle, tiny_llama)


@pytest.mark.parametrize("calibration", ["auto", "own"])
def test_too_little_memory_at_this_time_is_an_error(tiny_llama, tmp_path, monkeypatch, calibration):
    """What is free comes and goes: it must not decide what a bundle is."""
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=1 << 40))
    with pytest.raises(KQuantError, match=r"GB are free: end other programs, or give --calibration random or none$"):
        calibrated(tiny_llama, tmp_path / "b", calibration=calibration)
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_at_all_is_decided_beforehand_and_part_of_the_fingerprint(tiny_llama, tmp_path, monkeypatch):
    whole = calibrated(tiny_llama, tmp_path / "whole")
    monkeypatch.setattr(memory, "_process_limits", lambda: [1000])
    said = []
    bundle = calibrated(tiny_llama, tmp_path / "b", said.append)
    (note,) = (note for note in bundle.manifest["notes"] if note.startswith("no calibration on the model's own text"))
    assert f"warning: {note} (0.0 GB)" in said
    assert bundle.manifest["decided"] == {"calibration": "random"}
    assert "decided" not in whole.manifest
    assert bundle.manifest["settings"] == whole.manifest["settings"]
    assert bundle.manifest["fingerprint"] != whole.manifest["fingerprint"]
    with pytest.raises(KQuantError, match="is a bundle of other settings"):
        calibrated(tiny_llama, tmp_path / "whole")
    assert "tuning" not in bundle.manifest
    expected = compress(tiny_llama, tmp_path / "random", bits=2)
    found, tensors = (load_file(one.infos["lm_head.weight"].file) for one in (bundle, expected))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_an_unknown_architecture_is_encoded_without_data(tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "zebra", "architectures": ["ZebraForCausalLM"]}
    (source / "config.json").write_text(json.dumps(config))
    bundle = calibrated(source, tmp_path / "b")
    assert [note.partition(",")[0] for note in bundle.manifest["notes"]] == [
        "no calibration on the model's own text",
        "no channel scaling",
    ]
    assert str(tmp_path) not in (tmp_path / "b" / "kquant.json").read_text()
    assert in_metric_of(bundle) == set()
    assert_decodes(bundle, source)


def test_experts_that_are_fused_are_encoded_without_calibration_and_noted(tmp_path):
    source = tiny_models.make("mixtral", tmp_path / "source")
    said = []
    bundle = calibrated(source, tmp_path / "b", said.append, tune_steps=2)
    experts = {name for name in bundle.layouts if "experts" in name}
    assert in_metric_of(bundle) == set(bundle.layouts) - experts
    (note,) = bundle.manifest["notes"]
    assert note.startswith(f"{len(experts)} of {len(bundle.layouts)} matrices are encoded without calibration (")
    assert note.endswith(NOT_FOUND)
    assert f"note: {note}" in said
    assert_stated(bundle, source)
    with pytest.raises(KeyboardInterrupt):
        calibrated(source, tmp_path / "cut", stage_of_writing, tune_steps=2)


def stage_of_writing(text):
    """Stops where the notes are said, after everything is staged and tuned."""
    if text.startswith("note: "):
        raise KeyboardInterrupt


def test_a_run_with_everything_staged_goes_on_to_the_same_bytes(tmp_path):
    source = tiny_models.make("mixtral", tmp_path / "source", num_hidden_layers=1)
    calibrated(source, tmp_path / "whole", tune_steps=2)
    with pytest.raises(KeyboardInterrupt):
        calibrated(source, tmp_path / "cut", stage_of_writing, tune_steps=2)
    resumed = []
    calibrated(source, tmp_path / "cut", progress=lambda done: resumed.append(done.resumed), tune_steps=2)
    assert resumed == [True] * 16
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")


@pytest.mark.parametrize("arch", ["bert", "roberta_classifier"])
def test_encoders_are_measured_on_random_tokens(arch, tmp_path):
    source = tiny_models.make(arch, tmp_path / "source")
    bundle = compress(source, tmp_path / "b", calibration="auto")
    assert bundle.manifest["statistics"]["source"] == "random"
    assert scales(bundle)
    assert in_metric_of(bundle) == set()
    assert not (tmp_path / "b.text.safetensors").exists()


def test_own_text_is_for_models_that_can_write_and_encoders_that_read_it(tiny_llama, tmp_path, kquant):
    source = tiny_models.make("bert", tmp_path / "source")
    for folder, more in ((source, ()), (tiny_llama, ("--encoder", "uniform")), (tiny_llama, ("--side", "input"))):
        done = kquant("compress", folder, "-o", tmp_path / "b", "--calibration", "own", *more)
        assert done.code == 2
        assert "`calibration` is own" in done.err
        assert done.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("equal", [True, False])
def test_an_average_by_the_calibrations_gradients(tiny_llama, tmp_path, equal):
    bundle = calibrated(tiny_llama, tmp_path / "b", bits=3.5, equal_fused=equal)
    assert 3.5 - 0.2 < encoded_bits(bundle) <= 3.5
    assert bundle.manifest["allocation"]["sensitivities"] == "own"
    groups = fused_groups(bundle.layouts)
    assert len(groups) == 4
    alike = [len({bundle.layouts[name].levels for name in group}) == 1 for group in groups]
    assert all(alike) if equal else not all(alike)
    assert not (tmp_path / "b.sensitivity.json").exists()
    assert in_metric_of(bundle) == set(bundle.layouts)


def test_an_average_with_a_matrix_outside_the_blocks_is_measured_with_noise(tiny_llama, tmp_path):
    bundle = calibrated(tiny_llama, tmp_path / "b", bits=3.5, include=("lm_head.weight",))
    assert bundle.manifest["allocation"]["sensitivities"] == "data-free"
    assert encoded_bits(bundle) <= 3.5
    assert in_metric_of(bundle) == set(bundle.layouts) - {"lm_head"}


def test_sensitivities_are_nats_by_error(tiny_llama, tmp_path):
    """Against the KL of the model with such errors in a matrix: white in each column, fed back, relative to it."""
    plan = plan_of(tiny_llama, calibration_tokens=4096)
    found = open_session(
        plan.checkpoint, "own", 4096, seed=0, device=CPU, file=tmp_path / "t.safetensors", fingerprint=""
    )
    moments = GradientMoments(found.model, found.ids, CPU)
    moments.forward()
    predicted = sensitivities(plan, moments, found.ids.numel(), CPU, lambda done, total: None)
    jobs = {job.matrix.name: job for job in plan.jobs}
    names = [f"model.layers.{place}" for place in ("0.self_attn.v_proj", "0.mlp.up_proj", "1.mlp.down_proj")]
    metrics = {}
    for some, _ in moments.backward([jobs[name].matrix for name in names], {}):
        metrics |= some
    ids, eps = found.ids[:24], 1e-3
    with torch.no_grad():
        dense = found.model(ids).logits.double().log_softmax(-1)
        for name in names:
            weight, metric = read_weight(plan.checkpoint, jobs[name].matrix, CPU).double(), metrics[name]
            right = basis_for(in_metric._right(weight.shape[1], 0)).dense()
            r = in_metric._row_scale(weight, metric.outputs).double()
            lines = (weight / r[:, None]) @ right
            unit = in_metric._factor((right.T @ metric.inputs.double() @ right)[None], torch.zeros(1).double())[0]
            back = torch.linalg.inv(unit + torch.eye(len(unit)).double())
            parameter, total = found.model.get_submodule(name).weight, 0.0
            for seed in range(6):
                draw = torch.Generator().manual_seed(seed)
                noise = torch.randn(weight.shape, dtype=torch.float64, generator=draw)
                error = eps**0.5 * r[:, None] * (noise * lines.square().mean(dim=0).sqrt() @ back) @ right.T
                parameter.add_(error.float())
                moved = found.model(ids).logits.double().log_softmax(-1)
                parameter.copy_(weight.float())
                total += float((dense.exp() * (dense - moved)).sum(-1).mean()) / 6
            assert 0.5 < predicted[name] * eps / total < 2, name


def test_a_text_of_the_users(tmp_path):
    source, text = tiny_text_models.make(tmp_path / "source", "llama"), tmp_path / "text.txt"
    text.write_text(tiny_text_models.text(3000))
    bundle = calibrated(source, tmp_path / "b", calibration=str(text), tune_steps=1)
    assert bundle.manifest["statistics"]["source"].startswith("text.txt (SHA-256 ")
    assert bundle.manifest["statistics"]["tokens"] == 1024
    assert in_metric_of(bundle) == set(bundle.layouts)
    text.write_text(tiny_text_models.text(3000, seed=4))
    with pytest.raises(KQuantError, match="is a bundle of other settings or of another source"):
        pipeline.compress(plan_of(source, calibration=str(text), tune_steps=1), tmp_path / "b")


@pytest.mark.parametrize(
    "settings", [{"tune_steps": 0}, {"tune_steps": None, "tune_minutes": 0.0}, {"tune_steps": None}]
)
def test_no_tuning(tiny_llama, tmp_path, settings):
    """Where zero steps or minutes are asked for; and with the least effort, unless some are."""
    bundle = calibrated(tiny_llama, tmp_path / "b", **settings)
    assert "tuning" not in bundle.manifest
    source, stored = load_file(tiny_llama / "model.safetensors"), load_file(bundle.infos["lm_head.weight"].file)
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert torch.equal(stored[name], source[name])


def test_minutes_set_the_steps(tiny_llama, tmp_path):
    bundle = calibrated(tiny_llama, tmp_path / "b", tune_steps=None, tune_minutes=1e-6)
    assert bundle.manifest["tuning"]["steps"] == tuning.UNTIMED + tuning.TIMED + 1


def test_too_few_tokens_say_so_and_encode_without_data(tiny_llama, tmp_path):
    bundle = calibrated(tiny_llama, tmp_path / "b", calibration_tokens=64, tune_steps=2)
    (note,) = bundle.manifest["notes"]
    assert note.endswith("fewer than 128 tokens were seen to reach them")
    assert in_metric_of(bundle) == set()
    assert "tuning" not in bundle.manifest
    assert_decodes(bundle, tiny_llama)


def test_logits_that_are_not_finite_are_a_sentence(tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5e38
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KQuantError, match=r"computes logits that are not finite, .* give --calibration FILE, random"):
        calibrated(source, tmp_path / "b")
    assert not (tmp_path / "b.part").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_and_biases_keep_the_sources_dtype(tmp_path, dtype):
    source = tiny_models.make("opt", tmp_path / "source", save_dtype=dtype)
    bundle = calibrated(source, tmp_path / "b", tune_steps=6)
    before, stored = load_file(source / "model.safetensors"), load_file(next((tmp_path / "b").glob("*.safetensors")))
    vectors = [name for name, tensor in before.items() if tensor.ndim == 1]
    assert len(vectors) > 10
    assert {stored[name].dtype for name in vectors} == {dtype}
    assert sum(not torch.equal(stored[name], before[name]) for name in vectors) > len(vectors) / 2
    assert all(torch.isfinite(tensor.float()).all() for tensor in stored.values())
    divergences = bundle.manifest["tuning"]["held_out_divergence"]
    assert divergences["after"] < divergences["before"]
    kept = load_file(tmp_path / "b.text.safetensors")["ids"]
    assert divergence(source, bundle, kept[:1]) == pytest.approx(divergences["after"], rel=0.1)

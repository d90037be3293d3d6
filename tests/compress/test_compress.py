"""Compress and decode whole checkpoints of every layout; interruption, refusal, determinism."""

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from kquant_cli.bundle import open_bundle, write_dense
from kquant_cli.bundle.writer import write_weights
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline, write_bundle
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig
from kquant_cli.encoders import encode
from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_writer import TensorWriter

QUICK = {"encoder": "greedy", "calibration": "none", "max_iter": 12, "kmeans_iter": 10, "bits": 3}


def compress(source: Path, out: Path, overwrite: bool = False, **settings: object) -> Path:
    plan = make_plan(open_checkpoint(source), CompressConfig(**{**QUICK, **settings}))
    pipeline.compress(plan, out, overwrite=overwrite)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "run.json"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("arch", tiny_models.ARCHITECTURES)
def test_decompressed_logits_are_those_of_decode(arch, tmp_path):
    """Against transformers on a copy of the source whose weights the safetensors library replaced by `decode()`."""
    source = tiny_models.make(arch, tmp_path / "source")
    bundle = open_bundle(compress(source, tmp_path / "bundle"))
    write_dense(bundle, tmp_path / "dense")
    replaced = load_file(source / "model.safetensors")
    for name in bundle.layouts:
        decoded = bundle.encoded(name).decode()
        assert not torch.equal(decoded, replaced[f"{name}.weight"])
        replaced[f"{name}.weight"] = (decoded.T if bundle.layouts[name].transposed else decoded).contiguous()
    shutil.copytree(source, tmp_path / "twin")
    save_file(replaced, tmp_path / "twin" / "model.safetensors", metadata={"format": "pt"})
    tokens = tiny_models.tokens()
    with torch.no_grad():
        ours = tiny_models.load(arch, tmp_path / "dense")(tokens).logits
        expected = tiny_models.load(arch, tmp_path / "twin")(tokens).logits
        dense = tiny_models.load(arch, source)(tokens).logits
    assert torch.equal(ours, expected)
    assert not torch.allclose(ours, dense, atol=1e-3)


def test_manifest_states_everything(tiny_llama, tmp_path):
    manifest = open_bundle(compress(tiny_llama, tmp_path / "b")).manifest
    tensors = load_file(tiny_llama / "model.safetensors")
    totals = manifest["totals"]
    assert totals["parameters"] == sum(t.numel() for t in tensors.values())
    assert totals["source_bytes"] == sum(t.numel() * t.element_size() for t in tensors.values())
    stored = load_file(next((tmp_path / "b").glob("*.safetensors")))
    assert totals["bytes"] == sum(t.numel() * t.element_size() for t in stored.values())
    encoded = [t for name, t in stored.items() if ".weight_" in name]
    assert totals["encoded_bytes"] == sum(t.numel() * t.element_size() for t in encoded)
    assert set(manifest["files"]) == {p for p in contents(tmp_path / "b") if p != "kquant.json"}


def test_same_run_same_bytes(tiny_llama, tmp_path):
    first, second = (compress(tiny_llama, tmp_path / name, init="kmeans++", basis="qr") for name in ("a", "b"))
    assert contents(first) == contents(second)


def test_interrupted_run_goes_on(tiny_llama, tmp_path, monkeypatch):
    whole = compress(tiny_llama, tmp_path / "whole")
    plan = make_plan(open_checkpoint(tiny_llama), CompressConfig(**QUICK))
    seen = []

    def stop_after_five(done: pipeline.Progress) -> None:
        seen.append(done.job.matrix.name)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.compress(plan, tmp_path / "cut", progress=stop_after_five)
    assert not (tmp_path / "cut").exists()
    calls = []
    monkeypatch.setattr(pipeline, "encode", lambda *args: calls.append(args) or encode(*args))
    resumed = []
    assert pipeline.compress(plan, tmp_path / "cut", progress=lambda done: resumed.append(done.resumed))
    assert len(calls) == len(plan.jobs) - 5
    assert resumed == [True] * 5 + [False] * (len(plan.jobs) - 5)
    assert contents(tmp_path / "cut") == contents(whole)
    assert not (tmp_path / "cut.part").exists()


def test_unfinished_work_of_other_settings_is_not_mixed_in(tiny_llama, tmp_path):
    checkpoint = open_checkpoint(tiny_llama)

    def stop(done: pipeline.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.compress(make_plan(checkpoint, CompressConfig(**QUICK)), tmp_path / "b", progress=stop)
    plan = make_plan(checkpoint, CompressConfig(**{**QUICK, "bits": 2}))
    said, resumed = [], []
    pipeline.compress(plan, tmp_path / "b", say=said.append, progress=lambda done: resumed.append(done.resumed))
    assert said[0].startswith("discarded unfinished work")
    assert not any(resumed)
    assert {layout.levels for layout in open_bundle(tmp_path / "b").layouts.values()} == {4}


def test_equal_bundle_is_left_alone_and_another_refused(tiny_llama, tmp_path):
    out = compress(tiny_llama, tmp_path / "b")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    plan = make_plan(open_checkpoint(tiny_llama), CompressConfig(**QUICK))
    assert pipeline.compress(plan, out) is False
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    with pytest.raises(KQuantError, match="--overwrite"):
        compress(tiny_llama, out, bits=2)
    compress(tiny_llama, out, overwrite=True, bits=2)
    assert {layout.levels for layout in open_bundle(out).layouts.values()} == {4}
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_changed_weights_are_another_source(tmp_path):
    source = tiny_models.make("opt", tmp_path / "source")
    out = compress(source, tmp_path / "b")
    tensors = load_file(source / "model.safetensors")
    tensors["model.decoder.layers.0.fc1.weight"][0, 0] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KQuantError, match="another source"):
        compress(source, out)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_ours_is_not_touched(tiny_llama, tmp_path, overwrite):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("x")
    with pytest.raises(KQuantError, match="is not a kquant bundle"):
        compress(tiny_llama, tmp_path / "b", overwrite=overwrite)
    assert (tmp_path / "b" / "thesis.tex").read_text() == "x"


def test_an_output_inside_the_source_is_refused(tmp_path):
    source = tiny_models.make("opt", tmp_path / "source")
    before = contents(source)
    with pytest.raises(KQuantError, match="overlaps with"):
        compress(source, source / "bundles" / "b")
    assert contents(source) == before


@pytest.mark.parametrize("neighbour", ["b.part", "b.old"])
def test_folders_of_others_beside_the_bundle_stay(tiny_llama, tmp_path, neighbour):
    (tmp_path / neighbour).mkdir()
    (tmp_path / neighbour / "thesis.tex").write_text("x")
    compress(tiny_llama, tmp_path / "a")
    if neighbour == "b.part":
        with pytest.raises(KQuantError, match=r"b.part: is needed for unfinished work, but is not kquant's"):
            compress(tiny_llama, tmp_path / "b")
    else:
        compress(tiny_llama, tmp_path / "b")
        compress(tiny_llama, tmp_path / "b", overwrite=True, bits=2)
    assert (tmp_path / neighbour / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("damage", ["json", "safetensors"])
def test_a_damaged_unfinished_matrix_is_encoded_again(tiny_llama, tmp_path, damage):
    def stop(done: pipeline.Progress) -> None:
        raise KeyboardInterrupt

    plan = make_plan(open_checkpoint(tiny_llama), CompressConfig(**QUICK))
    with pytest.raises(KeyboardInterrupt):
        pipeline.compress(plan, tmp_path / "b", progress=stop)
    file = next((tmp_path / "b.part" / "matrices").glob(f"*.{damage}"))
    file.write_bytes(file.read_bytes()[:40])
    pipeline.compress(plan, tmp_path / "b")
    assert contents(tmp_path / "b") == contents(compress(tiny_llama, tmp_path / "whole"))


def test_decompress_replaces_only_what_it_wrote(tiny_llama, tmp_path):
    bundle = open_bundle(compress(tiny_llama, tmp_path / "b"))
    source = tiny_models.make("llama", tmp_path / "source")
    before = contents(source)
    for out in (tmp_path / "b", tmp_path / "b" / "dense", source):
        with pytest.raises(KQuantError):
            write_dense(bundle, out, overwrite=True)
    assert contents(source) == before
    open_bundle(tmp_path / "b")
    write_dense(bundle, tmp_path / "dense")
    write_dense(bundle, tmp_path / "dense", overwrite=True)


def test_files_in_subfolders_survive_the_way_there_and_back(tmp_path):
    source = tiny_models.make("llama", tmp_path / "source")
    for name in ("1_Pooling/config.json", "results/README.md", "run.json"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    plan = make_plan(
        open_checkpoint(source, copy_files=["run.json"]), CompressConfig(**QUICK, copy_files=("run.json",))
    )
    assert "run.json is not copied" in plan.notes[-1]
    pipeline.compress(plan, tmp_path / "b")
    write_dense(open_bundle(tmp_path / "b"), tmp_path / "dense")
    assert (tmp_path / "dense" / "1_Pooling" / "config.json").exists()
    assert (tmp_path / "dense" / "results" / "README.md").exists()


def test_a_rule_for_no_layer_is_refused(tiny_llama, tmp_path):
    with pytest.raises(KQuantError, match=r"'\*\.q_prj' fits no matrix"):
        compress(tiny_llama, tmp_path / "b", layers=({"match": "*.q_prj", "bits": 2},))
    bundle = open_bundle(compress(tiny_llama, tmp_path / "b", layers=({"match": "*.q_proj.weight", "bits": 2},)))
    assert bundle.layouts["model.layers.0.self_attn.q_proj"].levels == 4


def test_an_empty_folder_will_do(tiny_llama, tmp_path):
    (tmp_path / "b").mkdir()
    open_bundle(compress(tiny_llama, tmp_path / "b"))


def test_tied_weights_are_stored_once(tmp_path):
    source = tiny_models.make("llama", tmp_path / "source", tie_word_embeddings=True)
    bundle = open_bundle(compress(source, tmp_path / "b"))
    assert "model.embed_tokens.weight" in bundle.infos
    assert "lm_head.weight" not in bundle.infos
    write_dense(bundle, tmp_path / "dense")
    model = tiny_models.load("llama", tmp_path / "dense")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_pickled_checkpoint_gives_the_same_weights(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "pickled")
    torch.save(load_file(tiny_llama / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    pickled = dict(open_bundle(compress(tmp_path / "pickled", tmp_path / "a")).tensors())
    plain = dict(open_bundle(compress(tiny_llama, tmp_path / "b")).tensors())
    assert pickled.keys() == plain.keys()
    assert all(torch.equal(pickled[name], plain[name]) for name in plain)


def test_shards_are_cut_and_read_again(tiny_llama, tmp_path, monkeypatch):
    whole = open_bundle(compress(tiny_llama, tmp_path / "whole"))
    monkeypatch.setattr(write_bundle, "write_weights", partial(write_weights, shard_bytes=6_000))
    bundle = open_bundle(compress(tiny_llama, tmp_path / "cut"))
    names = sorted({info.file.name for info in bundle.infos.values()})
    assert len(names) > 3
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert all(torch.equal(tensor, whole.tensor(name)) for name, tensor in bundle.tensors())


@pytest.mark.parametrize(("answer", "outcome"), [("keep", "kept"), ("uniform:4", "fallback"), ("encode", "encoded")])
def test_no_convergence(tiny_llama, tmp_path, answer, outcome):
    """`outcome` for the layers that have not converged in 12 steps: all of them."""
    bundle = open_bundle(compress(tiny_llama, tmp_path / "b", on_no_convergence=answer))
    source = load_file(tiny_llama / "model.safetensors")
    for name, facts in bundle.manifest["matrices"].items():
        assert facts["outcome"] == outcome
        assert facts["converged"] is False
        assert facts["iterations"] == QUICK["max_iter"]
        if answer == "keep":
            assert torch.equal(bundle.tensor(f"{name}.weight"), source[f"{name}.weight"])
        else:
            assert bundle.layouts[name].levels == (16 if answer == "uniform:4" else 8)
    assert (len(bundle.layouts) == 0) == (answer == "keep")


def test_layer_rules_reach_the_layers(tiny_llama, tmp_path):
    rules = ({"match": "*.down_proj", "bits": 5}, {"match": "*layers.1.*", "encoder": "kmeans"})
    bundle = open_bundle(compress(tiny_llama, tmp_path / "b", layers=rules, exclude=("*.q_proj*",)))
    assert bundle.layouts["model.layers.0.mlp.down_proj"].levels == 32
    assert bundle.layouts["model.layers.0.mlp.up_proj"].levels == 8
    assert bundle.layouts["model.layers.1.mlp.down_proj"].columns == 1
    assert "model.layers.0.self_attn.q_proj" not in bundle.layouts


@pytest.mark.parametrize("name", ["model.decoder.layers.1.fc2.weight", "model.decoder.embed_tokens.weight"])
def test_not_finite_weights_are_named(tmp_path, name):
    source = tiny_models.make("opt", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors[name].view(-1)[3] = float("inf")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KQuantError, match=f"'{name}' has entries that are not finite"):
        compress(source, tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_basis_of_an_impossible_size_is_refused_before_any_work(tmp_path):
    source = tiny_models.make("opt", tmp_path / "source", ffn_dim=63)
    with pytest.raises(KQuantError, match="63"):
        compress(source, tmp_path / "b", basis="hadamard")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("file", ["weight_codes", "model-00001-of-00001.safetensors"])
def test_no_space_left(tiny_llama, tmp_path, monkeypatch, file):
    """While a matrix is made durable, or while the shard is written: one sentence, and the next run goes on."""
    write = TensorWriter.write

    def full(self: TensorWriter, name: str, tensor: torch.Tensor) -> None:
        if file == name or file in Path(self._file.name).name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, tensor)

    monkeypatch.setattr(TensorWriter, "write", full)
    with pytest.raises(KQuantError, match="no space left on the device"):
        compress(tiny_llama, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    monkeypatch.setattr(TensorWriter, "write", write)
    open_bundle(compress(tiny_llama, tmp_path / "b"))


def test_other_files_are_copied(tmp_path):
    source = tiny_models.make("llama", tmp_path / "source")
    (source / "LICENSE").write_text("free")
    (source / "tokenizer.json").write_text("{}")
    (source / "model.onnx").write_bytes(b"x")
    out = compress(source, tmp_path / "b")
    assert (out / "LICENSE").read_text() == "free"
    assert (out / "tokenizer.json").exists()
    assert not (out / "model.onnx").exists()
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "kashin"
    assert config == json.loads((source / "config.json").read_text())


def test_a_config_with_infinity_is_passed_on_as_transformers_writes_it(tiny_llama, tmp_path):
    """Nemotron-H and Mamba-Codestral have one; JSON itself has no word for it."""
    source = Path(shutil.copytree(tiny_llama, tmp_path / "source"))
    text = (source / "config.json").read_text().replace("{", '{"time_step_limit": [0.0, Infinity],', 1)
    (source / "config.json").write_text(text)
    pipeline.compress(make_plan(open_checkpoint(source), CompressConfig(encoder="uniform")), tmp_path / "bundle")
    written = (tmp_path / "bundle" / "config.json").read_text()
    config = json.loads(written, parse_constant=pytest.fail)
    assert config["time_step_limit"] == [0.0, {"__float__": "Infinity"}]


def test_unknown_files_are_named_once_and_copied_on_demand(kquant, tmp_path, read):
    """What lies beside a model need not be for others to see."""
    source = tiny_models.make("llama", tmp_path / "source")
    for name in (".env", "notes.txt", "LICENSE"):
        (source / name).write_text("x")
    os.mkfifo(source / "tokenizer.json")
    (source / "vocab.txt").symlink_to("/dev/zero")
    plain = ("--encoder", "uniform", "--calibration", "none", "--device", "cpu")
    first = kquant("compress", source, "-o", tmp_path / "a", *plain)
    assert first.code == 0
    sentence = f"note: not copied from {source}, since kquant knows no role for them: .env, notes.txt; --copy PATTERN"
    assert first.err.count(sentence) == 1
    ours = {
        "config.json",
        "kquant.json",
        "run.json",
        "model.safetensors.index.json",
        "model-00001-of-00001.safetensors",
    }
    assert {file.name for file in (tmp_path / "a").iterdir()} == {*ours, "generation_config.json", "LICENSE"}
    assert read(tmp_path / "a" / "kquant.json")["settings"].keys().isdisjoint({"copy_files"})
    second = kquant("compress", source, "-o", tmp_path / "b", *plain, "--copy", "*.txt", "--copy", ".env")
    assert second.code == 0
    assert "not copied" not in second.err
    assert (tmp_path / "b" / ".env").read_text() == (tmp_path / "b" / "notes.txt").read_text() == "x"
    assert read(tmp_path / "b" / "kquant.json")["settings"]["copy_files"] == ["*.txt", ".env"]
    third = kquant("compress", source, "-o", tmp_path / "c", *plain, "--copy", "nothing*")
    assert third.code == 2
    assert "`copy_files`: the pattern 'nothing*' fits no file" in third.err

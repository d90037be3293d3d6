"""A damaged bundle is refused with one sentence that names the file or tensor."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kquant_cli.bundle import is_bundle, newest_bundle, open_bundle, write_dense
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig
from kquant_cli.errors import KQuantError

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def whole(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "whole"
    pipeline.compress(make_plan(open_checkpoint(tiny_llama), CompressConfig(max_iter=5, calibration="random")), out)
    return out


@pytest.fixture
def bundle(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def change_config(bundle: Path, change) -> None:
    config = json.loads((bundle / "config.json").read_text())
    change(config["quantization_config"])
    (bundle / "config.json").write_text(json.dumps(config))
    accept(bundle, "config.json")


def change_json(bundle: Path, file: str, **values) -> None:
    (bundle / file).write_text(json.dumps(json.loads((bundle / file).read_text()) | values))
    if file != "kquant.json":
        accept(bundle, file)


def change_tensors(bundle: Path, change) -> None:
    tensors = load_file(bundle / SHARD)
    change(tensors)
    save_file(tensors, bundle / SHARD)
    accept(bundle, SHARD)


def accept(bundle: Path, file: str) -> None:
    """Give the manifest the file's new size and hash: the damage must be found all the same."""
    from hashlib import sha256

    manifest = json.loads((bundle / "kquant.json").read_text())
    data = (bundle / file).read_bytes()
    manifest["files"][file] = {"size": len(data), "sha256": sha256(data).hexdigest()}
    (bundle / "kquant.json").write_text(json.dumps(manifest))


def test_whole_bundle_opens(bundle):
    opened = open_bundle(bundle)
    assert is_bundle(bundle)
    assert len(opened.layouts) == 14
    assert {name for name, _ in opened.tensors()} == {name for name, _, _ in opened.shapes()}
    for name, dtype, shape in opened.shapes():
        tensor = opened.tensor(name)
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)


def test_dense_dtype_of_every_tensor(bundle, tmp_path):
    write_dense(open_bundle(bundle), tmp_path / "dense", torch.bfloat16)
    tensors = load_file(tmp_path / "dense" / SHARD)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "dense" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(KQuantError, match="exists already"):
        write_dense(open_bundle(bundle), tmp_path / "dense")
    write_dense(open_bundle(bundle), tmp_path / "dense", overwrite=True)
    assert load_file(tmp_path / "dense" / SHARD)["model.norm.weight"].dtype == torch.float32


def damage_newer(bundle):
    change_config(bundle, lambda q: q.update(format_version=5))


def damage_older(bundle):
    change_config(bundle, lambda q: q.update(format_version=1))


def damage_version(bundle):
    change_config(bundle, lambda q: q.update(format_version="new"))


def damage_modules(bundle):
    change_config(bundle, lambda q: q["modules"]["model.layers.0.mlp.up_proj"].pop("levels"))


def damage_unknown_part(bundle):
    change_config(bundle, lambda q: q["modules"]["model.layers.0.mlp.up_proj"].update(colour=3))


def damage_missing_tensor(bundle):
    change_tensors(bundle, lambda t: t.pop("model.layers.1.mlp.up_proj.weight_scale"))


def damage_missing_everywhere(bundle):
    damage_missing_tensor(bundle)
    index = json.loads((bundle / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.layers.1.mlp.up_proj.weight_scale"]
    (bundle / "model.safetensors.index.json").write_text(json.dumps(index))
    accept(bundle, "model.safetensors.index.json")


def damage_unnamed_tensor(bundle):
    change_tensors(bundle, lambda t: t.update({"left.over": torch.zeros(2)}))


def damage_shape(bundle):
    change_tensors(bundle, lambda t: t.update({"model.layers.1.mlp.up_proj.weight_scale": torch.zeros(8, 1)}))


def damage_truncated(bundle):
    with (bundle / SHARD).open("r+b") as file:
        file.truncate(2000)


def damage_one_byte(bundle):
    data = bytearray((bundle / SHARD).read_bytes())
    data[-1] ^= 1
    (bundle / SHARD).write_bytes(data)


def damage_lost_file(bundle):
    (bundle / SHARD).unlink()


def damage_manifest(bundle):
    (bundle / "kquant.json").write_text("{")


def damage_deep_manifest(bundle):
    (bundle / "kquant.json").write_text('{"a":' * 100_000)


def damage_large_manifest(bundle):
    with (bundle / "kquant.json").open("r+b") as file:
        file.truncate(1_000_000_001)


def damage_no_manifest(bundle):
    (bundle / "kquant.json").unlink()


def damage_outside(bundle):
    index = json.loads((bundle / "model.safetensors.index.json").read_text())
    index["weight_map"]["x"] = "../elsewhere.safetensors"
    (bundle / "model.safetensors.index.json").write_text(json.dumps(index))
    accept(bundle, "model.safetensors.index.json")


def damage_lost_module(bundle):
    change_config(bundle, lambda q: q["modules"].pop("model.layers.1.mlp.up_proj"))


def damage_frame(bundle):
    change_config(bundle, lambda q: q["modules"]["model.layers.0.mlp.up_proj"]["frame"]["right_v"].update(size=31))


def damage_basis(bundle):
    change_config(bundle, lambda q: q["modules"]["model.layers.0.mlp.up_proj"]["frame"]["right_v"].update(kind="x"))


def module(**values):
    return lambda bundle: change_config(bundle, lambda q: q["modules"]["model.layers.0.mlp.up_proj"].update(values))


def index(weight_map):
    return lambda bundle: change_json(bundle, "model.safetensors.index.json", weight_map=weight_map)


def files(values):
    return lambda bundle: change_json(bundle, "kquant.json", files=values)


def unlist(name):
    def damage(bundle):
        listed = json.loads((bundle / "kquant.json").read_text())["files"]
        change_json(bundle, "kquant.json", files={file: facts for file, facts in listed.items() if file != name})

    return damage


def attention(part, **values):
    """Change, or with None remove, what the config says of a projection; k, q and v share the scale of k."""

    def change(quantization):
        facts = quantization["modules"][f"model.layers.0.self_attn.{part}"]
        facts.update(values)
        for key in [key for key, value in facts.items() if value is None]:
            del facts[key]

    return lambda bundle: change_config(bundle, change)


NOT_SHARED = "'model.layers.0.self_attn.q_proj' takes its channel scale from {!r}, which has none of its size"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_newer, "format 5, this kquant reads formats 2 to 4; upgrade"),
        (damage_older, "format 1, this kquant reads formats 2 to 4; make the bundle again"),
        (damage_version, "format_version is 'new'"),
        (damage_modules, "module 'model.layers.0.mlp.up_proj' of quantization_config cannot be read"),
        (damage_unknown_part, "module 'model.layers.0.mlp.up_proj' of quantization_config cannot be read"),
        (damage_lost_module, "does not say how the stored 'model.layers.1.mlp.up_proj.weight_codes' decodes"),
        (damage_frame, "cannot be read (size of right_v cannot be 31)"),
        (damage_basis, "config.json: module 'model.layers.0.mlp.up_proj'"),
        (lambda bundle: change_config(bundle, lambda q: q.update(modules=None)), "has no modules"),
        (module(levels="16"), "cannot be read (levels cannot be '16')"),
        (module(levels=1000), "cannot be read (levels cannot be 1000)"),
        (
            module(grid="ring-99"),
            "has the unknown constant codebook 'ring-99', expected one that this kquant knows; upgrade kashin-quant",
        ),
        (module(grid="ring-8"), "cannot be read (grid of 16 levels and 2 columns cannot be 'ring-8')"),
        (module(exponent=200), "cannot be read (exponent cannot be 200)"),
        (module(dtype="foo"), "cannot be read (dtype cannot be 'foo')"),
        (index([]), "index.json: weight_map names no shards"),
        (index({"model.norm.weight": 3}), "index.json: weight_map names no shards"),
        (index({"model.norm.weight": "kquant.json"}), "index.json: weight_map names no shards"),
        (index({"model.norm.weight": "a/b.safetensors"}), "'a/b.safetensors', expected a file of the bundle's folder"),
        (index({"model.norm.weight": "C:b.safetensors"}), "'C:b.safetensors', expected a file of the bundle's folder"),
        (index({"model.norm.weight": "a\0.safetensors"}), "'a\\x00.safetensors', expected a file of the bundle's"),
        (files({}), "kquant.json: files does not list 'config.json'"),
        (files({"config.json": 3}), "kquant.json: lacks size or sha256 of 'config.json'"),
        (files({"config.json": {"size": 3}}), "kquant.json: lacks size or sha256 of 'config.json'"),
        (files({"../x": {"size": 1, "sha256": ""}}), "kquant.json: names '../x' in files, which is outside the bundle"),
        (files({"/x": {"size": 1, "sha256": ""}}), "kquant.json: names '/x' in files, which is outside the bundle"),
        (unlist("model.safetensors.index.json"), "files does not list 'model.safetensors.index.json'"),
        (unlist(SHARD), f"files does not list '{SHARD}'"),
        (damage_unnamed_tensor, "does not name the stored tensor 'left.over'"),
        (damage_missing_tensor, "has no tensor 'model.layers.1.mlp.up_proj.weight_scale'"),
        (damage_missing_everywhere, "expected the tensor model.layers.1.mlp.up_proj.weight_scale"),
        (damage_shape, "of shape [64, 1], found one of shape [8, 1]"),
        (damage_truncated, "has 2000 bytes, expected"),
        (damage_one_byte, "SHA-256"),
        (damage_lost_file, "is missing from the bundle"),
        (damage_manifest, "kquant.json: is not valid JSON"),
        (
            damage_deep_manifest,
            "kquant.json: is not valid JSON (nested more than 64 deep); the bundle is damaged, make it again",
        ),
        (
            damage_large_manifest,
            "kquant.json: has 1000000001 bytes, expected at most 256000000; the bundle is damaged",
        ),
        (damage_no_manifest, "kquant.json: cannot be read"),
        (damage_outside, "names '../elsewhere.safetensors'"),
        (attention("q_proj", channel_scale_from="nowhere"), NOT_SHARED.format("nowhere")),
        (  # of another size
            attention("q_proj", channel_scale_from="model.layers.0.mlp.down_proj"),
            NOT_SHARED.format("model.layers.0.mlp.down_proj"),
        ),
        (  # takes it from another itself
            attention("q_proj", channel_scale_from="model.layers.0.self_attn.v_proj"),
            NOT_SHARED.format("model.layers.0.self_attn.v_proj"),
        ),
        (
            attention("q_proj", channel_scale_from="model.layers.0.self_attn.q_proj"),
            NOT_SHARED.format("model.layers.0.self_attn.q_proj"),
        ),
        (
            attention("q_proj", channel_scale_from=None),
            "expected the tensor model.layers.0.self_attn.q_proj.weight_channel_scale of shape [32], found none",
        ),
        (attention("q_proj", channel_scale_from=3), "cannot be read (channel_scale_from cannot be 3)"),
        (attention("q_proj", channel_scale=None), "cannot be read (channel_scale_from cannot be 'model.layers.0.self"),
        (attention("k_proj", channel_scale=None), NOT_SHARED.format("model.layers.0.self_attn.k_proj")),
        (
            lambda bundle: change_config(bundle, lambda q: q["modules"].pop("model.layers.0.self_attn.k_proj")),
            NOT_SHARED.format("model.layers.0.self_attn.k_proj"),
        ),
    ],
)
def test_damage(bundle, damage, sentence):
    damage(bundle)
    with pytest.raises(KQuantError) as error:
        open_bundle(bundle)
    assert sentence in str(error.value)
    assert str(bundle) in str(error.value)
    assert "\n" not in str(error.value)


def test_newest(whole, tmp_path):
    import os

    with pytest.raises(KQuantError, match="there is no bundle under"):
        newest_bundle(tmp_path / "bundles")
    for age, name in enumerate(("c", "a", "b")):
        shutil.copytree(whole, tmp_path / "bundles" / name)
        os.utime(tmp_path / "bundles" / name / "kquant.json", (1000 - age, 1000 - age))
    assert newest_bundle(tmp_path / "bundles").name == "c"


def test_not_a_bundle(tiny_llama, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text('{"quantization_config":' * 100_000)
    for folder in (tiny_llama, tmp_path, tmp_path / "nowhere", tmp_path / "deep"):
        with pytest.raises(KQuantError, match="is not a kquant bundle"):
            open_bundle(folder)

"""What lies in a bundle's folder is what its manifest and index name: no link out of it, no other weights beside it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kquant_cli.bundle import open_bundle, write_dense
from kquant_cli.errors import KQuantError

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def change_manifest(bundle, change):
    manifest = json.loads((bundle / "kquant.json").read_text())
    change(manifest)
    (bundle / "kquant.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "model.fp16.safetensors", "MODEL-2.SAFETENSORS", "model.fp16.safetensors.index.json"),
        *("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_config.json", "adapter_model.bin", "x.gguf"),
        *("tf_model.h5", "flax_model.msgpack", "model.pt", "model.ckpt.index"),
    ],
)
def test_other_weights_in_the_folder_are_refused_by_name(bundle, name):
    """transformers prefers model.safetensors to an index, and an adapter's model to all."""
    (bundle / name).write_bytes(b"x")
    for verify in (True, False):
        with pytest.raises(KQuantError, match="holds weights or names them, but is no part of the bundle") as refusal:
            open_bundle(bundle, verify=verify)
        assert str(bundle / name) in str(refusal.value)


def test_nor_may_the_manifest_list_what_is_preferred(bundle):
    shutil.copy(bundle / SHARD, bundle / "model.safetensors")
    change_manifest(bundle, lambda m: m["files"].update({"model.safetensors": m["files"][SHARD]}))
    with pytest.raises(KQuantError, match=r"model\.safetensors: holds weights"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["CARD.md", ".gitattributes", "notes.txt", "results/x.bin", "sub/model.safetensors"])
def test_other_files_may_lie_there(bundle, name):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("x")
    open_bundle(bundle)


def secret(bundle, name):
    """Put the content of a file of the bundle elsewhere, and a link in its place."""
    (bundle / name).rename(bundle.parent / "secret")
    (bundle / name).symlink_to(bundle.parent / "secret")


@pytest.mark.parametrize(
    "name", [SHARD, "tokenizer.json", "config.json", "kquant.json", "model.safetensors.index.json"]
)
def test_links_out_of_the_bundle_are_not_followed(bundle, name, tmp_path):
    secret(bundle, name)
    for verify in (True, False):
        with pytest.raises(KQuantError, match=f"{name}: is a link that leads out of the bundle"):
            open_bundle(bundle, verify=verify)


def test_nor_is_a_linked_folder(bundle, tmp_path):
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "passwd").write_text("x")
    (bundle / "sub").symlink_to(tmp_path / "away")
    change_manifest(bundle, lambda m: m["files"].update({"sub/passwd": {"size": 1, "sha256": ""}}))
    with pytest.raises(KQuantError, match="passwd: is a link that leads out"):
        open_bundle(bundle, verify=False)


def test_a_snapshot_of_the_hub_is_made_of_links(bundle, tmp_path):
    model = tmp_path / "models--owner--name"
    snapshot = model / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for number, file in enumerate(sorted(file for file in bundle.iterdir() if file.is_file())):
        file.rename(model / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert open_bundle(snapshot).layouts
    write_dense(open_bundle(snapshot), tmp_path / "dense")
    assert not [file for file in (tmp_path / "dense").rglob("*") if file.is_symlink()]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "a\\..\\x", "C:x", "a\0b", "\ud800", "NUL", "a\x1bb", "a/.. /b"]
)
def test_no_file_of_another_name_is_read_or_written(bundle, tmp_path, name):
    (tmp_path / "x").write_text("x")
    change_manifest(bundle, lambda m: m["files"].update({name: {"size": 1, "sha256": ""}}))
    with pytest.raises(KQuantError, match="in files, which is outside the bundle"):
        open_bundle(bundle, verify=False)


def test_a_decoded_checkpoint_holds_no_weights_but_the_decoded(bundle, tmp_path):
    """An earlier kquant copied what it did not take for weights."""
    (bundle / "dict.bin").write_text("x")
    change_manifest(bundle, lambda m: m["files"].update({"dict.bin": {"size": 1, "sha256": ""}}))
    write_dense(open_bundle(bundle, verify=False), tmp_path / "dense")
    assert not (tmp_path / "dense" / "dict.bin").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", [SHARD, "config.json", "kquant.json", "tokenizer.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(bundle, name):
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(KQuantError):
        open_bundle(bundle)


def test_a_tensor_in_two_shards_or_in_another_than_the_index_says(bundle):
    tensors = load_file(bundle / SHARD)
    first = min(tensors)
    save_file({first: tensors[first]}, bundle / "other.safetensors", metadata={"format": "pt"})
    index = json.loads((bundle / "model.safetensors.index.json").read_text())
    index["weight_map"]["x"] = "other.safetensors"
    facts = {name: {"size": (bundle / name).stat().st_size, "sha256": ""} for name in ("other.safetensors",)}
    (bundle / "model.safetensors.index.json").write_text(json.dumps(index))
    facts["model.safetensors.index.json"] = {
        "size": (bundle / "model.safetensors.index.json").stat().st_size,
        "sha256": "",
    }
    change_manifest(bundle, lambda m: m["files"].update(facts))
    with pytest.raises(KQuantError, match=f"holds '{first}', which {SHARD} holds, too"):
        open_bundle(bundle, verify=False)


def test_numbers_of_a_config_that_are_not_finite_go_on_as_transformers_writes_them(bundle, tmp_path):
    text = (bundle / "config.json").read_text().replace("{", '{"time_step_limit": [0.0, Infinity],', 1)
    (bundle / "config.json").write_text(text)
    change_manifest(bundle, lambda m: m["files"]["config.json"].update(size=len(text)))
    write_dense(open_bundle(bundle, verify=False), tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(tmp_path / "dense").time_step_limit == [0.0, float("inf")]

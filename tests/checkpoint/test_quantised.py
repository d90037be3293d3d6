"""Bad checkpoints: each is refused with one sentence that names the file or the tensor."""

import json
import os
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.errors import KQuantError

WEIGHT = {"model.layers.0.fc.weight": torch.ones(4, 4)}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def refused(model: str | Path, pattern: str) -> None:
    with pytest.raises(KQuantError, match=pattern) as refusal:
        open_checkpoint(model)
    assert "\n" not in str(refusal.value)
    assert not re.search(r"[.!]$", str(refusal.value))


def write_index(folder: Path, content: object) -> None:
    (folder / INDEX).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/where", "../nowhere", "~/no-such-model", "a/b/c", "nowhere/", "a\\b", ""]
)
def test_a_path_that_is_not_there(name):
    refused(name, f"there is no folder {re.escape(repr(name))}: expected a model folder, or the id")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("~nosuch/x", "Could not determine home directory"),
        ("n" * 300, "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        ("loop/model", "Too many levels of symbolic links"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_a_path_that_cannot_be_followed(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    refused(name, rf"cannot be looked up \({reason}\): expected a model folder")


def test_a_path_object_is_never_taken_for_a_hub_id():
    refused(Path("owner/name"), "there is no folder 'owner/name'")


def test_a_file_instead_of_a_folder(folder):
    refused(folder / "config.json", r"config\.json is a file: expected the folder")


def test_a_revision_of_a_folder(folder):
    save_file(WEIGHT, folder / "model.safetensors")
    with pytest.raises(
        KQuantError, match=r"a revision \('main'\) belongs to a model on the hub, and .*model is a folder"
    ):
        open_checkpoint(folder, revision="main")


def test_a_folder_without_a_config(folder):
    (folder / "config.json").unlink()
    refused(folder, r"model is not a model folder: it holds no config\.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, r"is not valid JSON \(nested more than 64 deep\): download it again"),
        (b'{"a":' * 64 + b"{}" + b"}" * 64, r"is not valid JSON \(nested more than 64 deep\): download it again"),
        (b"[]", "should hold a JSON object and holds a list"),
    ],
)
def test_a_damaged_config(folder, content, message):
    save_file(WEIGHT, folder / "model.safetensors")
    (folder / "config.json").write_bytes(content)
    refused(folder, rf"config\.json {message}")


def test_a_config_too_large_to_be_one(folder):
    save_file(WEIGHT, folder / "model.safetensors")
    with (folder / "config.json").open("r+b") as file:
        file.truncate(100_000_001)
    refused(folder, r"config\.json has 100000001 bytes, and kquant reads at most 100000000 .*: download it again")


def test_a_folder_without_weights(folder):
    refused(folder, r"model holds no weights: expected model\.safetensors")
    (folder / "model.gguf").write_text("x")
    refused(folder, r"model holds no weights \(it holds model\.gguf, which kquant does not read\)")


def test_an_adapter(folder):
    save_file({"lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, r"model is an adapter \(it holds adapter_config\.json\), not a model: merge it")


def test_a_link_that_leads_nowhere(folder):
    save_file(WEIGHT, folder / "model.safetensors")
    (folder / "tokenizer.json").symlink_to(folder / "gone")
    refused(folder, r"tokenizer\.json is a link that leads nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "already quantised with gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "already quantised with fp8"),
        ({"quantization_config": {"quant_algo": "FP8"}}, "already quantised with an unnamed method"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "already quantised with compressed-tensors"),
        ({"quantization_config": {"quant_method": "kashin"}}, "already a kquant bundle: `kquant decompress`"),
    ],
)
def test_a_config_that_says_quantised(folder, settings, message):
    save_file(WEIGHT, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    refused(folder, f"model is {message}")


def test_a_config_with_an_empty_quantisation_is_not_quantised(folder):
    save_file(WEIGHT, folder / "model.safetensors")
    (folder / "config.json").write_text('{"quantization_config": null}')
    assert set(open_checkpoint(folder).tensors) == set(WEIGHT)


@pytest.mark.parametrize(
    ("name", "dtype", "method"),
    [
        ("layers.0.fc.qweight", torch.int32, "GPTQ or AWQ"),
        ("layers.0.fc.qzeros", torch.int32, "GPTQ or AWQ"),
        ("layers.0.fc.g_idx", torch.int32, "GPTQ"),
        ("layers.0.fc.weight_scale_inv", torch.float32, "FP8 with block scales"),
        ("layers.0.fc.weight_packed", torch.int32, "compressed-tensors"),
        ("layers.0.fc.weight.absmax", torch.float32, "bitsandbytes"),
        ("layers.0.fc.SCB", torch.float32, "bitsandbytes"),
        ("layers.0.fc.weight_codes", torch.uint8, "kquant"),
        ("layers.0.fc.weight", torch.float8_e4m3fn, "FP8"),
        ("layers.0.fc.weight", torch.int8, "8-bit integers"),
    ],
)
def test_tensors_that_say_quantised(folder, name, dtype, method):
    save_file({**WEIGHT, name: torch.zeros(4, 4).to(dtype)}, folder / "model.safetensors")
    refused(folder, rf"model is already quantised with {method} \(it holds '{re.escape(name)}'")


def test_integer_tensors_of_a_dense_model_are_no_quantisation(folder):
    ids = {
        "ids": torch.arange(4),
        "mask": torch.ones(4, 4, dtype=torch.bool),
        "flags": torch.ones(4, dtype=torch.uint8),
    }
    save_file({**WEIGHT, **ids}, folder / "model.safetensors")
    assert set(open_checkpoint(folder).tensors) == {*WEIGHT, *ids}


def test_a_truncated_shard(folder):
    save_file(WEIGHT, folder / "one.safetensors")
    save_file({"b": torch.ones(8)}, folder / "two.safetensors")
    write_index(folder, {"weight_map": {"model.layers.0.fc.weight": "one.safetensors", "b": "two.safetensors"}})
    whole = (folder / "two.safetensors").read_bytes()
    (folder / "two.safetensors").write_bytes(whole[:-1])
    refused(folder, rf"two\.safetensors is truncated: it should have {len(whole)} bytes and has {len(whole) - 1}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {"a": "missing.safetensors"}}, r"names missing\.safetensors, which is not in the folder"),
        (
            {"weight_map": {"a": "../secret.safetensors"}},
            r"names '\.\./secret\.safetensors', which is outside the folder",
        ),
        ({"weight_map": {"a": "x/../../y.safetensors"}}, "which is outside the folder"),
        ({"weight_map": {"a": "/etc/secret.safetensors"}}, "which is outside the folder"),
        ({"weight_map": {"a": "C:\\secret.safetensors"}}, "which is outside the folder"),
        ({"weight_map": {"a": "..\\secret.safetensors"}}, "which is outside the folder"),
        ({"weight_map": {"a": "C:secret.safetensors"}}, "which is outside the folder"),
        ({"weight_map": {"a": "secret\0.safetensors"}}, "which is outside the folder"),
        (
            {"weight_map": {"a": "/etc/passwd"}},
            r"names '/etc/passwd' for tensor 'a': expected the name of a \.safetensors file",
        ),
        ({"weight_map": {"a": 3}}, "names 3 for tensor 'a'"),
        (
            {"weight_map": {"b": "one.safetensors"}},
            r"says that tensor 'b' is in one\.safetensors, which does not hold it",
        ),
        ({"weight_map": {}}, "holds no weight_map"),
        ({"weight_map": ["one.safetensors"]}, "holds no weight_map"),
        ({}, "holds no weight_map"),
        ([], "should hold a JSON object"),
    ],
)
def test_a_bad_index(folder, content, message):
    save_file(WEIGHT, folder / "one.safetensors")
    save_file(WEIGHT, folder.parent / "secret.safetensors")
    write_index(folder, content)
    refused(folder, rf"model\.safetensors\.index\.json {message}" if "outside" not in message else message)


def test_a_tensor_in_two_shards_that_the_index_does_not_place(folder):
    save_file({"a": torch.ones(2), "twice": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.ones(2), "twice": torch.ones(2)}, folder / "two.safetensors")
    write_index(folder, {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    refused(folder, r"two\.safetensors and one\.safetensors both hold tensor 'twice'")


@pytest.mark.parametrize(
    "names",
    [
        ("a.safetensors", "b.safetensors"),
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ("model-00001-of-00002.safetensors",),
    ],
)
def test_shards_without_an_index(folder, names):
    for name in names:
        save_file(WEIGHT, folder / name)
    refused(folder, rf"model holds {len(names)} safetensors files \({re.escape(names[0])}, \.\.\.\) and no index")


def test_a_checkpoint_without_tensors(folder):
    save_file({}, folder / "model.safetensors")
    refused(folder, r"model holds no tensors: model\.safetensors is empty")


def test_a_pickle_that_would_run_code(folder):
    """A pickle that runs code is not run."""

    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(folder / "planted"),)

    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": Planted()}, file, protocol=2)
    refused(folder, r"pytorch_model\.bin is damaged, or needs more than tensors")
    torch.save({"a": Planted(), **WEIGHT}, folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model\.bin is damaged, or needs more than tensors")
    assert not (folder / "planted").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list: expected the state dict"),
        ({"a": torch.ones(2), "epoch": 3}, "holds 'epoch', which is no tensor"),
        ({"model": {"a": torch.ones(2)}}, "holds 'model', which is no tensor"),
        ({3: torch.ones(2)}, "holds 3, which is no tensor"),
        ({"a": torch.eye(3).to_sparse()}, "holds 'a' as sparse_coo and float32"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "holds 'a' as strided and complex128"),
        ({}, "holds no tensors"),
    ],
)
def test_a_bin_that_is_no_state_dict(folder, content, message):
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder, message)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_bin_cut_anywhere(folder, zipped):
    path = folder / "pytorch_model.bin"
    torch.save(WEIGHT, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        refused(folder, r"pytorch_model\.bin is (truncated|damaged)")


@pytest.mark.filterwarnings("ignore")  # torch warns of the pickle protocols that garbled bytes seem to have
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_garbled_bytes_are_refused_or_read_but_never_crash(folder, kind):
    path = folder / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    if kind == "safetensors":
        save_file(WEIGHT, path)
    else:
        torch.save(WEIGHT, path, _use_new_zipfile_serialization=kind == "zip")
    whole, chance, refusals = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        garbled = bytearray(whole)
        garbled[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(garbled)
        try:
            checkpoint = open_checkpoint(folder)
            for name in checkpoint.tensors:
                checkpoint.read(name)
        except KQuantError as refusal:
            refusals += 1
            assert "model" in str(refusal)
    assert refusals > 20


@pytest.mark.parametrize(
    "junk", [b"version https://git-lfs", b"hello \x00\x01" * 50, b"PK\x03\x04" + bytes(100), bytes(64)]
)
def test_a_bin_that_is_junk(folder, junk):
    (folder / "pytorch_model.bin").write_bytes(junk)
    refused(folder, r"pytorch_model\.bin is (truncated|damaged)")


def test_a_bin_that_changed_since_it_was_opened(folder):
    torch.save(WEIGHT, folder / "pytorch_model.bin")
    checkpoint = open_checkpoint(folder)
    torch.save({name: tensor[:2] for name, tensor in WEIGHT.items()}, folder / "pytorch_model.bin")
    with pytest.raises(KQuantError, match=r"pytorch_model\.bin has changed since this run began to read it"):
        checkpoint.read("model.layers.0.fc.weight")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(KQuantError, match=r"cannot read .*pytorch_model\.bin: No such file"):
        checkpoint.read("model.layers.0.fc.weight")


def test_a_shard_that_was_cut_since_it_was_opened(folder):
    save_file(WEIGHT, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KQuantError, match=r"model\.safetensors has changed since this run began"):
        checkpoint.read("model.layers.0.fc.weight")

"""Opening checkpoints in every layout: the tensors, ties and other files are those that were saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from kquant_cli.checkpoint import file_roles, open_checkpoint


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_models.make("llama", tmp_path_factory.mktemp("models") / "llama", save_dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def state(llama) -> dict[str, torch.Tensor]:
    return load_file(llama / "model.safetensors")


def folder_with(path: Path, config: dict | None = None) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


def shard(folder: Path, state: dict[str, torch.Tensor], ending: str, save) -> None:
    """Two shards with an index, the tensors dealt out in turn."""
    stem = "model" if ending == "safetensors" else "pytorch_model"
    files = [f"{stem}-0000{part}-of-00002.{ending}" for part in (1, 2)]
    weight_map = {name: files[position % 2] for position, name in enumerate(state)}
    for file in files:
        save({name: tensor for name, tensor in state.items() if weight_map[name] == file}, folder / file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def legacy_save(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def make_layout(layout: str, folder: Path, state: dict[str, torch.Tensor]) -> None:
    if layout == "one safetensors file":
        save_file(state, folder / "model.safetensors")
    elif layout == "safetensors shards":
        shard(folder, state, "safetensors", save_file)
    elif layout == "a file of another name":
        save_file(state, folder / "weights.safetensors")
        save_file({"adapter.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
        save_file({"consolidated.weight": torch.ones(1)}, folder / "consolidated.00.safetensors")
        (folder / "original").mkdir()
        save_file({"original.weight": torch.ones(1)}, folder / "original" / "model.safetensors")
    elif layout == "safetensors beside a .bin":
        save_file(state, folder / "model.safetensors")
        torch.save({"stale.weight": torch.ones(1)}, folder / "pytorch_model.bin")
    elif layout == "one .bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif layout == ".bin shards":
        shard(folder, state, "bin", torch.save)
    elif layout == "one legacy .bin":
        legacy_save(state, folder / "pytorch_model.bin")
    elif layout == "legacy .bin shards":
        shard(folder, state, "bin", legacy_save)


LAYOUTS = (
    *("one safetensors file", "safetensors shards", "a file of another name", "safetensors beside a .bin"),
    *("one .bin", ".bin shards", "one legacy .bin", "legacy .bin shards"),
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tensors(tmp_path, state, layout):
    folder = folder_with(tmp_path / "my-model", {"model_type": "llama"})
    make_layout(layout, folder, state)
    checkpoint = open_checkpoint(str(folder))
    assert (checkpoint.path, checkpoint.name, checkpoint.revision) == (folder, "my-model", None)
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.tensors.keys() == state.keys()
    assert not checkpoint.tied
    assert checkpoint.other_files == ()
    for name, info in checkpoint.tensors.items():
        tensor = state[name]
        assert (info.name, info.dtype, info.shape) == (name, tensor.dtype, tuple(tensor.shape))
        assert (info.numel, info.nbytes) == (tensor.numel(), tensor.nbytes)
        assert info.file.parent == folder
        read = checkpoint.read(name)
        assert same(read, tensor)
        read.zero_()
        assert same(checkpoint.read(name), tensor), "a tensor read must not share memory with the next"


def test_the_shards_that_transformers_writes(tmp_path, state):
    folder = tiny_models.make("llama", tmp_path / "llama", save_dtype=torch.bfloat16, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == state.keys()
    assert all(same(checkpoint.read(name), tensor) for name, tensor in state.items())
    assert set(checkpoint.other_files) == {Path("generation_config.json")}


def test_strided_views_in_a_bin_are_read_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": base.t(), "b": base[1:], "c": base[:, ::2]}, folder_with(tmp_path / "m") / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert not checkpoint.tied
    for name, tensor in {"a": base.t(), "b": base[1:], "c": base[:, ::2]}.items():
        assert same(checkpoint.read(name), tensor)
        assert checkpoint.read(name).is_contiguous()
        assert checkpoint.read(name).untyped_storage().nbytes() == tensor.numel() * 4


@pytest.mark.parametrize("save", [torch.save, legacy_save], ids=["zip", "legacy"])
def test_tied_tensors_of_a_bin_are_kept_once_under_the_embeddings_name(tmp_path, save):
    """The names and order in which a BERT with a masked-language head was saved; the bias is tied as well."""
    table, bias = torch.randn(8, 4), torch.randn(8)
    state = {
        "cls.predictions.decoder.weight": table,
        "bert.embeddings.word_embeddings.weight": table,
        "cls.predictions.bias": bias,
        "cls.predictions.decoder.bias": bias,
        "other.weight": table.clone(),
    }
    save(state, folder_with(tmp_path / "m") / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert dict(checkpoint.tied) == {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    assert set(checkpoint.tensors) == {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias", "other.weight"}


@pytest.mark.parametrize("save", [torch.save, legacy_save], ids=["zip", "legacy"])
def test_only_what_transformers_ties_is_dropped_from_a_bin(tmp_path, save):
    """Blocks that share a weight are asked for under each name, and so is a tensor that just happens to be another."""
    table, block, other = torch.randn(8, 4), torch.randn(4, 4), torch.randn(2, 2)
    state = {
        **{"shared.weight": table, "encoder.embed_tokens.weight": table, "lm_head.weight": table},
        **{"layers.0.fc.weight": block, "layers.1.fc.weight": block, "a.proj.weight": other, "b.proj.weight": other},
        "layers.2.fc.weight": table,
    }
    save(state, folder_with(tmp_path / "m") / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert dict(checkpoint.tied) == dict.fromkeys(("encoder.embed_tokens.weight", "lm_head.weight"), "shared.weight")
    assert all(same(checkpoint.read(name), state[name]) for name in checkpoint.tensors)


@pytest.mark.parametrize(("tie", "tied"), [(None, True), (True, True), (False, False)])
def test_a_bin_that_shares_what_the_config_unties_keeps_both(tmp_path, tie, tied):
    table = torch.randn(8, 4)
    folder = folder_with(tmp_path / "m", {} if tie is None else {"tie_word_embeddings": tie})
    torch.save({"lm_head.weight": table, "model.embed_tokens.weight": table}, folder / "pytorch_model.bin")
    checkpoint = open_checkpoint(folder)
    assert dict(checkpoint.tied) == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})


@pytest.mark.parametrize(
    ("tie", "head", "tied"),
    [
        (True, lambda table: table.clone(), True),
        (False, lambda table: table.clone(), False),
        (None, lambda table: table.clone(), False),
        (True, lambda table: table.half(), False),
        (True, lambda table: table.reshape(4, 8), False),
        (True, lambda table: torch.where(table == table.flatten()[-1], 0.0, table), False),
    ],
    ids=["equal", "untied", "unsaid", "other dtype", "other shape", "one value differs"],
)
@pytest.mark.parametrize("layout", ["safetensors shards", ".bin shards"])
@pytest.mark.parametrize(
    ("embedding", "output"),
    [("transformer.wte.weight", "lm_head.weight"), ("gpt_neox.embed_in.weight", "embed_out.weight")],
)
def test_an_equal_output_layer_is_dropped_only_where_the_config_ties(
    tmp_path, tie, head, tied, layout, embedding, output
):
    table = torch.randn(8, 4)
    folder = folder_with(tmp_path / "m", {} if tie is None else {"tie_word_embeddings": tie})
    make_layout(layout, folder, {output: head(table), embedding: table})
    checkpoint = open_checkpoint(folder)
    assert dict(checkpoint.tied) == ({output: embedding} if tied else {})
    assert set(checkpoint.tensors) == ({embedding} if tied else {embedding, output})


def test_equality_is_of_bits(tmp_path):
    """NaNs in both are equal, zeros of different sign are not."""
    for head, tied in ((torch.tensor([[float("nan"), 0.0]]), True), (torch.tensor([[float("nan"), -0.0]]), False)):
        folder = folder_with(tmp_path / f"m{tied}", {"tie_word_embeddings": True})
        table = torch.tensor([[float("nan"), 0.0]])
        save_file({"lm_head.weight": head, "model.embed_tokens.weight": table}, folder / "model.safetensors")
        assert bool(open_checkpoint(folder).tied) == tied


def test_a_shards_tensor_that_the_index_forgot_is_kept_and_a_double_is_read_where_the_index_says(tmp_path):
    folder = folder_with(tmp_path / "m")
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, folder / "one.safetensors")
    save_file({"a": torch.full((2,), 2.0), "forgotten": torch.ones(3)}, folder / "two.safetensors")
    weight_map = {"a": "two.safetensors", "b": "one.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.tensors) == {"a", "b", "forgotten"}
    assert torch.equal(checkpoint.read("a"), torch.full((2,), 2.0))


def test_other_files_are_the_known_companions(tmp_path, state):
    folder = folder_with(tmp_path / "m")
    save_file(state, folder / "model.safetensors")
    copied = (
        *(
            "tokenizer.json",
            "tokenizer.model",
            "vocab.txt",
            "merges.txt",
            "chat_template.jinja",
            "generation_config.json",
        ),
        *("LICENSE", "README.md", "modeling_custom.py", "1_Pooling/config.json", "images/a/plot.png"),
        *("additional_chat_templates/tool_use.jinja", "tekken.json", "sentencepiece.bpe.model", "qwen.tiktoken"),
        *(
            "USE_POLICY.md",
            "Notice.txt",
            "preprocessor_config.json",
            "spiece.model",
            "config_sentence_transformers.json",
        ),
    )
    left = (
        *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tf_model.h5"),
        *("flax_model.msgpack", "rust_model.ot", "model.gguf", "model.onnx", "model.onnx_data", "model.tflite"),
        *(
            "consolidated.00.pth",
            "training_args.bin",
            "optimizer.pt",
            "scheduler.pt",
            "model.ckpt.index",
            "weights.npz",
        ),
        *(
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "openvino_model.bin",
            "fp16/model.safetensors",
            "MODEL.GGUF",
        ),
        *(
            ".gitattributes",
            ".env",
            "finetune.json",
            "secret.txt",
            "helper.py",
            "sub/extra.txt",
            "2_Dense/model.safetensors",
        ),
        *(".git/config", ".cache/huggingface/download/x.metadata", "bundles/m/kquant.json", "bundles/m/README.md"),
    )
    for name in (*copied, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    checkpoint = open_checkpoint(folder)
    assert {path.as_posix() for path in checkpoint.other_files} == set(copied)
    assert checkpoint.left_out == (
        f"not copied from {folder}, since kquant knows no role for them: .env, finetune.json, helper.py, secret.txt, "
        f"sub/extra.txt; --copy PATTERN copies what it fits",
    )


def test_what_a_pattern_of_the_users_adds(tmp_path, state):
    """By name or path, hidden ones too; never weights that would be taken for the model's own."""
    folder = folder_with(tmp_path / "m")
    save_file(state, folder / "model.safetensors")
    (folder / "sub").mkdir()
    for name in (".env", "a.txt", "sub/b.txt", "sub/c.bin", "pytorch_model.bin", "x.onnx"):
        (folder / name).write_text("x")
    checkpoint = open_checkpoint(folder, copy_files=["*.txt", ".env", "sub/*", "*.bin", "*.onnx", "config.json"])
    assert [file.as_posix() for file in checkpoint.other_files] == [".env", "a.txt", "sub/b.txt", "sub/c.bin"]
    assert checkpoint.left_out == ()


def test_code_that_the_config_names_comes_with_its_helpers(tmp_path, state):
    folder = folder_with(tmp_path / "m")
    save_file(state, folder / "model.safetensors")
    (folder / "helper.py").write_text("x")
    assert open_checkpoint(folder).other_files == ()
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "code.C"}}')
    assert open_checkpoint(folder).other_files == (Path("helper.py"),)


def test_the_modules_of_sentence_transformers_come_with_their_weights(tmp_path, state):
    folder = folder_with(tmp_path / "m")
    save_file(state, folder / "model.safetensors")
    for name in (
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "3_Old/pytorch_model.bin",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "modules.json").write_text("[]")
    copied = [file.as_posix() for file in open_checkpoint(folder).other_files]
    assert copied == ["2_Dense/config.json", "2_Dense/model.safetensors", "3_Old/pytorch_model.bin", "modules.json"]


def test_a_companion_that_is_too_large_is_left_out_by_name(tmp_path, state):
    folder = folder_with(tmp_path / "m")
    save_file(state, folder / "model.safetensors")
    for name in ("tokenizer.json", "README.md"):
        with (folder / name).open("wb") as file:
            file.truncate(file_roles.MOST_BYTES + (name == "README.md"))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.other_files == (Path("tokenizer.json"),)
    assert checkpoint.left_out == (
        f"not copied from {folder}, since they have more than 1 GB: README.md; --copy PATTERN copies what it fits",
    )
    assert set(open_checkpoint(folder, copy_files=["*.md"]).other_files) == {Path("tokenizer.json"), Path("README.md")}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_pipes_and_devices_are_no_files_of_a_checkpoint(tmp_path, state):
    folder = folder_with(tmp_path / "m")
    save_file(state, folder / "model.safetensors")
    os.mkfifo(folder / "tokenizer.json")
    (folder / "vocab.txt").symlink_to("/dev/zero")
    assert open_checkpoint(folder, copy_files=["*"]).other_files == ()


def test_links_to_files_are_followed_within_the_folder_and_the_hubs_cache(tmp_path, state):
    """The weights' always: only tensors are read of them."""
    (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
    folder = folder_with(tmp_path / "models--a--b" / "snapshots" / "c0ffee")
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for name in ("blob", "models--a--b/blobs/1", "models--a--b/text"):
        (tmp_path / name).write_text("x")
    save_file(state, tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    (folder / "tokenizer.json").symlink_to("../../blobs/1")
    (folder / "vocab.txt").symlink_to("tokenizer.json")
    (folder / "README.md").symlink_to("../../text")
    (folder / "LICENSE").symlink_to(tmp_path / "blob")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == state.keys()
    assert checkpoint.other_files == (Path("tokenizer.json"), Path("vocab.txt"))
    assert checkpoint.left_out == (
        f"not copied from {folder}, since they lie elsewhere, behind links: LICENSE, README.md; --copy PATTERN "
        f"copies what it fits",
    )
    assert Path("LICENSE") in open_checkpoint(folder, copy_files=["LICENSE"]).other_files


# VmHWM, since ru_maxrss counts the peak of the process that started this one
MEASURE = """
import re, sys
from pathlib import Path
from kquant_cli.checkpoint import open_checkpoint

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

for folder in sys.argv[1:]:
    before = peak()
    checkpoint = open_checkpoint(folder)
    for name in checkpoint.tensors:
        checkpoint.read(name)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_opening_and_reading_keep_the_file_out_of_the_resident_set(tmp_path, file):
    """128 MB in 32 tensors: the peak is that of a few, with slack for the allocator; a map or a buffer shows it all.

    A small checkpoint comes first, for what is loaded but once.
    """
    save = save_file if file.endswith("safetensors") else torch.save
    small, large = folder_with(tmp_path / "small"), folder_with(tmp_path / "large")
    save({"0.weight": torch.ones(1024, 1024)}, small / file)
    save({f"{position}.weight": torch.full((1024, 1024), float(position)) for position in range(32)}, large / file)
    done = subprocess.run([sys.executable, "-c", MEASURE, small, large], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12 * 4096, f"{int(done.stdout) / 1024:.0f} MB for tensors of 4 MB"


def test_nothing_here_imports_transformers_or_the_hub():
    """The packages are made unimportable, which a folder's checkpoint must not notice."""
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('transformers', 'huggingface_hub')));"
        "import kquant_cli.checkpoint, kquant_cli.files.safetensors_reader"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

"""Opening checkpoints in every layout: the tensors, ties and other files are those that were saved."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from kquant_cli.checkpoint import open_checkpoint


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


def test_other_files_are_all_that_is_not_weights(tmp_path, state):
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
        *("LICENSE", "README.md", "modeling_custom.py", ".gitattributes", "1_Pooling/config.json", "images/a/plot.png"),
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
        *(".git/config", ".cache/huggingface/download/x.metadata", "bundles/m/kquant.json", "bundles/m/README.md"),
    )
    for name in (*copied, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert {path.as_posix() for path in open_checkpoint(folder).other_files} == set(copied)


def test_links_to_files_are_followed_as_in_the_hubs_cache(tmp_path, state):
    folder = folder_with(tmp_path / "m")
    save_file(state, tmp_path / "blob")
    (tmp_path / "text").write_text("x")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    (folder / "tokenizer.json").symlink_to("../text")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == state.keys()
    assert checkpoint.other_files == (Path("tokenizer.json"),)


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

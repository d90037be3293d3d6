"""Loading: names on disk become modules as transformers maps them, and nothing random is ever measured."""

import builtins
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_text_models
import torch
from safetensors.torch import load_file, save_file

from kquant_cli import bundle as bundles
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.errors import KQuantError
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model, loading, running_dtype
from kquant_cli.runtime.cannot_run import CannotRunFromCodesError

CAUSAL = ["opt", "opt_projected", "gpt2", "gpt_neox", "llama", "gemma", "mixtral"]


@dataclass
class FolderAsBundle:
    """A dense folder behind a bundle's interface: its tensors under their names on disk."""

    path: Path
    without: str = ""

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in load_file(self.path / "model.safetensors").items():
            if name != self.without:
                yield name, tensor.to(dtype) if dtype else tensor


@pytest.fixture
def as_bundle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have `load_model` take a dense folder for a bundle that cannot run from its codes, so that it is decoded."""

    def refuse(*_: Any) -> None:
        raise CannotRunFromCodesError("it is dense")

    def install(folder: Path, without: str = "") -> Path:
        monkeypatch.setattr(bundles, "is_bundle", lambda path: path == folder)
        monkeypatch.setattr(bundles, "open_bundle", lambda path, verify: FolderAsBundle(path, without))
        monkeypatch.setattr(loading, "verify_folder", lambda path: None)
        monkeypatch.setattr(loading, "load_from_codes", refuse)
        return folder

    return install


@pytest.mark.parametrize("arch", CAUSAL)
def test_a_bundles_twin_is_the_model_that_transformers_loads(arch: str, tmp_path: Path, as_bundle: Any) -> None:
    folder = tiny_models.make(arch, tmp_path / arch)
    loaded = load_model(as_bundle(folder), device="cpu")
    tokens = tiny_models.tokens()
    assert loaded.kind == "bundle"
    assert torch.equal(loaded.model(tokens).logits, tiny_models.load(arch, folder)(tokens).logits)


def test_a_bundle_loads_under_another_head(tmp_path: Path, as_bundle: Any) -> None:
    folder = tiny_models.make("bert_classifier", tmp_path / "classifier")
    loaded = load_model(as_bundle(folder), auto_class="AutoModelForSequenceClassification", device="cpu")
    tokens = tiny_models.tokens()
    assert torch.equal(loaded.model(tokens).logits, tiny_models.load("bert_classifier", folder)(tokens).logits)


def test_a_bundle_that_lacks_a_tensor_is_refused_by_its_name(tmp_path: Path, as_bundle: Any) -> None:
    folder = tiny_models.make("gpt2", tmp_path / "gpt2")
    name = "transformer.h.1.mlp.c_fc.weight"
    with pytest.raises(KQuantError, match=f"lacks tensors that GPT2LMHeadModel needs \\({name}\\)"):
        load_model(as_bundle(folder, without=name), device="cpu")


def test_tied_weights_are_not_missing(tmp_path: Path, as_bundle: Any) -> None:
    folder = tiny_models.make("llama", tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model: Any = load_model(as_bundle(folder), device="cpu").model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_bundles_generation_settings_come_along(tmp_path: Path, as_bundle: Any) -> None:
    folder = tiny_models.make("llama", tmp_path / "llama")
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7, "eos_token_id": 5}')
    settings: Any = load_model(as_bundle(folder), device="cpu").model.generation_config
    assert (settings.max_new_tokens, settings.eos_token_id) == (7, 5)


def test_dense_models_load_in_float32_on_the_cpu_unless_told_otherwise(tmp_path: Path, as_bundle: Any) -> None:
    folder = tiny_models.make("llama", tmp_path / "half", save_dtype=torch.bfloat16)
    assert load_model(folder, device="cpu").dtype == torch.float32
    assert load_model(folder, device="cpu", dtype="auto").kind == "dense"
    assert load_model(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    as_bundle(folder)
    assert load_model(folder, device="cpu").dtype == torch.float32
    assert load_model(folder, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("arch", ["bert", "roberta", "bert_classifier"])
def test_a_model_that_is_no_causal_language_model_is_refused(arch: str, tmp_path: Path) -> None:
    with pytest.raises(KQuantError, match=r"is no causal language model|lacks tensors that BertLMHeadModel needs"):
        load_model(tiny_models.make(arch, tmp_path / arch), device="cpu")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.make("opt", tmp_path / "opt")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.decoder.layers.0.fc1.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(KQuantError, match=r"lacks tensors .*layers\.0\.fc1\.weight"):
        load_model(folder, device="cpu")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(KQuantError, match=r"opt cannot be loaded: "):
        load_model(folder, device="cpu")
    weights.unlink()
    with pytest.raises(KQuantError, match=r"opt cannot be loaded: .*model\.safetensors"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "there is no folder './nowhere'"),
        ("some/nested/folder", "there is no folder 'some/nested/folder'"),
        ("facebook/opt-125m", "no folder here, so taken for a model on the hub"),
    ],
)
def test_what_is_not_there_is_refused(name: str, says: str) -> None:
    with pytest.raises(KQuantError, match=says):
        load_model(name, device="cpu")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KQuantError, match=r"is not a model folder: it holds no config\.json"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(KQuantError, match=r"config\.json is not valid JSON .*: download it again"):
        load_model(tmp_path, device="cpu")


def test_a_revision_of_a_folder_is_refused(tiny_llama: Path, as_bundle: Any) -> None:
    for folder in (tiny_llama, as_bundle(tiny_llama)):
        with pytest.raises(KQuantError, match=r"a revision \('main'\) belongs to a model on the hub"):
            load_model(folder, device="cpu", revision="main")


@pytest.mark.parametrize("name", ["adapter", "adapter/adapter_config.json", "adapter/absent", "n" * 300])
def test_places_that_are_no_model_are_refused_as_compressing_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in (str(tmp_path / name), f"~/{name}"):
        with pytest.raises(KQuantError) as compressing:
            open_checkpoint(model)
        with pytest.raises(KQuantError) as loading:
            load_model(model, device="cpu")
        assert str(loading.value) == str(compressing.value)


def test_the_home_folder_is_expanded(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_llama.parent))
    assert load_model(f"~/{tiny_llama.name}", device="cpu").path == str(tiny_llama)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_size": "a"}, "'hidden_size' expected int, got str"),
        ({"hidden_size": None}, "'hidden_size' expected int, got NoneType"),
        ({"quantization_config": 3}, "AttributeError: 'int' object"),
        ({"model_type": ["llama"]}, "TypeError: unhashable"),
        ({"hidden_act": "tanhh"}, "KeyError: 'tanhh'"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"pad_token_id": 10**6}, "AssertionError: Padding_idx"),
    ],
)
def test_a_config_with_impossible_values_is_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = tiny_models.make("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(KQuantError, match=rf"{folder} cannot be loaded: .*({says})") as refusal:
        load_model(folder, device="cpu")
    assert "\n" not in str(refusal.value)


def test_architectures_that_are_no_list_harm_nothing(tmp_path: Path) -> None:
    folder = tiny_models.make("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": 3}))
    assert load_model(folder, device="cpu").kind == "dense"


PLANTED = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer
Path({marker!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(LlamaTokenizer):
    pass
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama with code of its own, whose running would leave a mark, and a user who answers yes to every question."""
    folder = tiny_models.make("llama", tmp_path / "llama")
    (folder / "own.py").write_text(PLANTED.format(marker=str(tmp_path / "marker")))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


@pytest.mark.parametrize("as_a_bundle", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "own"])
def test_a_checkpoints_own_code_is_never_run(model_type: str, as_a_bundle: bool, planted: Path, as_bundle: Any) -> None:
    config = json.loads((planted / "config.json").read_text())
    (planted / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": AUTO_MAP}))
    if as_a_bundle:
        as_bundle(planted)
    if model_type == "llama":
        assert type(load_model(planted, device="cpu").model).__name__ == "LlamaForCausalLM"
    else:
        with pytest.raises(KQuantError, match=rf"{planted} needs Python code that comes with it"):
            load_model(planted, device="cpu")
    assert not (planted.parent / "marker").exists()


def test_a_tokenizers_own_code_is_never_run(planted: Path) -> None:
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (planted / "tokenizer_config.json").write_text(json.dumps(settings))
    (planted / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": AUTO_MAP}))
    model: Any = None
    with pytest.raises(KQuantError, match=rf"the tokenizer of {planted} needs Python code"):
        _ = LoadedModel(model, "dense", str(planted)).tokenizer
    assert not (planted.parent / "marker").exists()


def test_devices_and_dtypes_that_are_not_there_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(KQuantError, match="dtype 'int3' is not known: use auto, float32"):
        load_model(tiny_llama, device="cpu", dtype="int3")
    with pytest.raises(KQuantError, match="device 'abacus'"):
        load_model(tiny_llama, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(KQuantError, match="torch sees no GPU"):
            load_model(tiny_llama, device="cuda")


@pytest.mark.parametrize("arch", ["opt", "llama"])
def test_a_missing_tokenizer_is_said_when_it_is_needed(arch: str, tmp_path: Path) -> None:
    loaded = load_model(tiny_models.make(arch, tmp_path / arch), device="cpu")
    with pytest.raises(KQuantError, match=r"has no tokenizer .* put its tokenizer\.json beside"):
        _ = loaded.tokenizer


def test_the_tokenizer_is_the_one_beside_the_weights(tmp_path: Path) -> None:
    loaded = load_model(tiny_text_models.make(tmp_path / "model"), device="cpu")
    ids = loaded.tokenizer("ka shin")["input_ids"]
    assert ids[0] == 1
    assert loaded.tokenizer.decode(ids[1:]) == "ka shin"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_checkpoints_dtype_is_kept(tmp_path: Path, as_bundle: Any) -> None:
    folder = tiny_models.make("llama", tmp_path / "half", save_dtype=torch.bfloat16)
    for path in (folder, as_bundle(folder)):
        loaded = load_model(path)
        assert (loaded.device.type, loaded.dtype) == ("cuda", torch.bfloat16)


def test_what_runs_fast_is_in_the_sources_dtype(demo_bundle: Path, tmp_path: Path) -> None:
    """`generate` and `bench` do not compute in float32 on a CPU what was in 16 bits."""
    for dtype, meant in (("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "auto"), (None, "auto")):
        copy = tmp_path / str(dtype)
        shutil.copytree(demo_bundle, copy)
        config = json.loads((copy / "config.json").read_text())
        config.pop("dtype", None)
        (copy / "config.json").write_text(json.dumps(config | ({"dtype": dtype} if dtype else {})))
        assert running_dtype(copy, "cpu", "auto") == meant
        assert running_dtype(str(copy), "cpu", "float32") == "float32"
    assert running_dtype("facebook/opt-1.3b", "cpu", "auto") == "auto"

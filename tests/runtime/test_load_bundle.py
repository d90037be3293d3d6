"""Whole models from their codes against their dense twins, by our `load` and by transformers' own `from_pretrained`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_bundles import bundle_of, compress, logits, relative, twin_of
from torch import nn

import kquant_cli
from kquant_cli.errors import KQuantError
from kquant_cli.runtime import KashinLinear, load, load_model
from kquant_cli.runtime.cannot_run import CannotRunFromCodesError
from kquant_cli.runtime.replace_layers import kashin_layers

CAUSAL = ["opt", "opt_projected", "gpt2", "gpt_neox", "llama", "qwen3", "gemma"]
CLASSIFIERS = ["bert_classifier", "roberta_classifier"]
ROUNDED = 1e-4  # a product of few tokens is good to 2e-5 in float32 (native/lookup.h)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes: 4 bits, with channel scales that q, k and v, gate and up share."""
    return bundle_of("llama", tmp_path_factory.mktemp("codes"), calibration="random")


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles load without a manifest: so a changed one is refused for its tensors."""
    monkeypatch.setenv("KQUANT_WITHOUT_MANIFEST", "1")


def copy_of(bundle: Path, to: Path) -> Path:
    """Another folder with the same files but the manifest."""
    to.mkdir()
    for file in bundle.iterdir():
        if file.is_file() and file.name != "kquant.json":
            (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("arch", CAUSAL)
def test_causal_models(arch: str, tmp_path: Path) -> None:
    bundle = bundle_of(arch, tmp_path)
    model = load(bundle, dtype="float32")
    assert sum(1 for _ in kashin_layers(model)) == len(
        json.loads((bundle / "config.json").read_text())["quantization_config"]["modules"]
    )
    assert not [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in n]
    expected = logits(twin_of(bundle, "AutoModelForCausalLM"))
    assert relative(logits(model), expected) < ROUNDED
    through_transformers = transformers.AutoModelForCausalLM.from_pretrained(bundle, dtype=torch.float32)
    assert torch.equal(logits(through_transformers), logits(model))


@pytest.mark.parametrize(("dtype", "times"), [("float32", 1), ("bfloat16", 1), ("float64", 0)])
def test_loops_are_compiled_as_it_loads(
    demo_bundle: Path, dtype: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while the first token is made. 16-bit models run them too, in float32; those of float64 do not."""
    calls: list[int] = []
    monkeypatch.setattr("kquant_cli.native.make_ready", lambda: calls.append(1))
    load(demo_bundle, dtype=dtype)
    assert len(calls) == times


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_classifiers(arch: str, tmp_path: Path) -> None:
    bundle = bundle_of(arch, tmp_path)
    model = load(bundle, "sequence-classification", dtype="float32")
    expected = logits(twin_of(bundle, "AutoModelForSequenceClassification"))
    assert relative(logits(model), expected) < ROUNDED
    if arch == "roberta_classifier":  # has no pooler, which transformers' bare model wants
        with pytest.raises(KQuantError, match=r"lacks tensors that RobertaModel needs \(pooler"):
            load(bundle, "encoder")
        return
    encoder: Any = load(bundle, "encoder", dtype="float32")
    twin = twin_of(bundle, "AutoModel")
    with torch.no_grad():
        found, dense = (m(tiny_models.tokens()).last_hidden_state for m in (encoder, twin))
    assert relative(found, dense) < ROUNDED


@pytest.mark.parametrize(
    ("encoder", "arch", "size"),
    [  # each encoder with each architecture and at each of its sizes
        ("annealed", "opt", {"bits": 2}),
        ("annealed", "llama", {"bits": 3}),
        ("annealed", "gpt2", {"levels": 12}),
        ("annealed", "bert_classifier", {"bits": 8}),
        ("annealed", "gpt2", {"bits": 4}),
        ("greedy", "opt", {"bits": 3}),
        ("greedy", "llama", {"bits": 2}),
        ("greedy", "gpt2", {"bits": 4}),
        ("greedy", "bert_classifier", {"bits": 2}),
        ("kmeans", "opt", {"bits": 4}),
        ("kmeans", "llama", {"bits": 2}),
        ("kmeans", "gpt2", {"bits": 2}),
        ("kmeans", "bert_classifier", {"bits": 4}),
        ("uniform", "opt", {"bits": 8, "group_size": 16}),
        ("uniform", "llama", {"bits": 4, "group_size": 16}),
        ("uniform", "gpt2", {"bits": 2, "group_size": 16}),
        ("uniform", "bert_classifier", {"bits": 4, "group_size": 16}),
    ],
)
def test_every_encoder_architecture_and_bit_width(
    encoder: str, arch: str, size: dict[str, Any], tmp_path: Path
) -> None:
    auto_class = tiny_models.ARCHITECTURES[arch].auto_class
    task = "causal-lm" if "Causal" in auto_class else "sequence-classification"
    bundle = bundle_of(arch, tmp_path, encoder=encoder, **size)
    expected = logits(twin_of(bundle, auto_class))
    assert relative(logits(load(bundle, task, dtype="float32")), expected) < ROUNDED


def test_channel_scales_are_shared(llama: Path) -> None:
    modules = json.loads((llama / "config.json").read_text())["quantization_config"]["modules"]
    assert any("channel_scale_from" in layout for layout in modules.values())
    model: Any = load(llama, dtype="float32")
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.input_transform is attention.k_proj.input_transform is attention.v_proj.input_transform
    assert attention.q_proj.input_transform.readers == 3
    assert attention.o_proj.input_transform is not attention.q_proj.input_transform
    assert relative(logits(model), logits(twin_of(llama, "AutoModelForCausalLM"))) < ROUNDED


def test_no_dense_copy_is_held(llama: Path) -> None:
    for _, layer in kashin_layers(load(llama)):
        for name, parameter in layer.named_parameters():
            assert name == "bias" or parameter.numel() < layer.in_features * layer.out_features
            assert not parameter.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype: torch.dtype, llama: Path) -> None:
    model = load(llama, dtype=dtype)
    layer = next(layer for _, layer in kashin_layers(model))
    assert (model.dtype, layer.codebook.dtype) == (dtype, torch.float32)
    expected = logits(twin_of(llama, "AutoModelForCausalLM", dtype))
    assert relative(logits(model), expected) < {torch.float32: ROUNDED, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    assert relative(logits(model.to(torch.float32)), logits(twin_of(llama, "AutoModelForCausalLM"))) < 0.1
    with pytest.raises(ValueError, match="not supported for quantized model"):
        model.half()


@pytest.mark.parametrize("arch", ["opt", "gpt2", "llama", "bert_classifier"])
def test_save_pretrained_round_trips(arch: str, tmp_path: Path) -> None:
    bundle = bundle_of(arch, tmp_path, calibration="random")
    auto = getattr(transformers, tiny_models.ARCHITECTURES[arch].auto_class)
    model = auto.from_pretrained(bundle)
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    again = auto.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))
    saved = {k: v for f in (tmp_path / "saved").glob("*.safetensors") for k, v in load_file(f).items()}
    codes = [name for name in saved if name.endswith("weight_codes")]
    assert len(codes) == sum(1 for _ in kashin_layers(model))
    assert all(saved[name].dtype == torch.uint8 for name in codes)
    assert (
        relative(
            logits(load_model(tmp_path / "saved", auto_class=auto.__name__, device="cpu").model),
            logits(model.to(torch.float32)),
        )
        < ROUNDED
    )


def test_generate(llama: Path) -> None:
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    tokens = tiny_models.tokens(1, 4)
    found = load(llama, dtype="float32").generate(tokens, **settings)
    assert torch.equal(found, twin_of(llama, "AutoModelForCausalLM").generate(tokens, **settings))


def test_dequantize_gives_the_twin(tmp_path: Path) -> None:
    for arch in ("llama", "gpt2"):
        bundle = bundle_of(arch, tmp_path / arch)
        model = load(bundle, dtype="float32")
        model.save_pretrained(tmp_path / arch / "saved")
        model.dequantize()
        assert not list(kashin_layers(model))
        assert relative(logits(model), logits(twin_of(bundle, "AutoModelForCausalLM"))) < 1e-6


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_device_maps(place: str, llama: Path, tmp_path: Path) -> None:
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": place, "model.norm": "cpu",
                  "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(
        llama, device_map=device_map, dtype=torch.float32, offload_folder=tmp_path / "offload"
    )
    layer: Any = model.get_submodule("model.layers.1.mlp.up_proj")
    assert layer.weight_codes.device.type == ("meta" if place == "disk" else "cpu")
    assert relative(logits(model), logits(load(llama, dtype="float32"))) < ROUNDED
    assert torch.equal(logits(load(llama, device_map="auto", dtype="float32")), logits(load(llama, dtype="float32")))


def test_shards(tmp_path: Path) -> None:
    source = tiny_models.make("llama", tmp_path / "source", max_shard_size="20KB")
    bundle = compress(source, tmp_path / "bundle")
    assert relative(logits(load(bundle, dtype="float32")), logits(twin_of(bundle, "AutoModelForCausalLM"))) < ROUNDED


def test_an_id_on_the_hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle in the hub's cache, as a download leaves it, is found by its id without a network."""
    snapshot = tmp_path / "hub/models--somebody--codes/snapshots/abc"
    snapshot.mkdir(parents=True)
    for file in llama.iterdir():
        if file.is_file():
            (snapshot / file.name).write_bytes(file.read_bytes())
    refs = tmp_path / "hub/models--somebody--codes/refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = load("somebody/codes", dtype="float32")
    assert relative(logits(model), logits(load(llama, dtype="float32"))) < ROUNDED


def test_fused_experts_are_a_named_refusal_and_evaluation_decodes_them(tmp_path: Path) -> None:
    bundle = bundle_of("mixtral", tmp_path)
    with pytest.raises(CannotRunFromCodesError, match="which transformers fuses from several: MixtralForCausalLM"):
        load(bundle)
    loaded = load_model(bundle, device="cpu")
    assert "fuses" in loaded.decoded
    assert torch.equal(logits(loaded.model), logits(twin_of(bundle, "AutoModelForCausalLM")))


def test_an_encoded_head_runs_and_may_be_left_out(tmp_path: Path) -> None:
    bundle = bundle_of("llama", tmp_path, include=["lm_head"])
    model: Any = load(bundle, dtype="float32")
    assert isinstance(model.lm_head, KashinLinear)
    assert relative(logits(model), logits(twin_of(bundle, "AutoModelForCausalLM"))) < ROUNDED
    assert not hasattr(load(bundle, "encoder"), "lm_head")


def damage(bundle: Path, change: Any) -> Path:
    tensors = load_file(bundle / "model-00001-of-00001.safetensors")
    config = json.loads((bundle / "config.json").read_text())
    change(tensors, config["quantization_config"])
    (bundle / "config.json").write_text(json.dumps(config))
    save_file(tensors, bundle / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = json.loads((bundle / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (bundle / "model.safetensors.index.json").write_text(json.dumps(index))
    return bundle


NAME = "model.layers.0.mlp.down_proj"
DAMAGES = {
    "no codebook, though none is named": (
        lambda t, q: [q["modules"][NAME].pop(key) for key in ("grid", "exponent")],
        r"expected the tensor .*down_proj.weight_codebook of shape \[16, 2\], found none",
    ),
    "a codebook that a newer kquant has": (
        lambda t, q: q["modules"][NAME].update(grid="ring-500"),
        r"down_proj' of quantization_config has the unknown constant codebook 'ring-500', .* upgrade kashin-quant",
    ),
    "codes of another shape": (
        lambda t, q: t.update({f"{NAME}.weight_codes": t[f"{NAME}.weight_codes"][:-1].clone()}),
        r"expected the tensor .*down_proj.weight_codes",
    ),
    "codes of another type": (  # of which the loops would read the first bytes
        lambda t, q: t.update({f"{NAME}.weight_codes": t[f"{NAME}.weight_codes"].int()}),
        r"down_proj.weight_codes is int32, expected uint8",
    ),
    "a scale of integers": (
        lambda t, q: t.update({f"{NAME}.weight_scale": t[f"{NAME}.weight_scale"].int()}),
        r"down_proj.weight_scale is int32, expected a floating-point type",
    ),
    "not named": (lambda t, q: q["modules"].pop(NAME), r"does not say how the stored .*down_proj.weight_codes"),
    "newer": (
        lambda t, q: q.update(format_version=99, more=1),
        "has format 99, this kquant reads formats 2 to 4; upgrade",
    ),
    "no module list": (lambda t, q: q.pop("modules"), "quantization_config has no modules"),
}


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize("name", DAMAGES)
def test_what_does_not_fit_is_refused_before_loading(name: str, llama: Path, tmp_path: Path) -> None:
    change, sentence = DAMAGES[name]
    bundle = damage(copy_of(llama, tmp_path / "damaged"), change)
    for loading in (load, transformers.AutoModelForCausalLM.from_pretrained):
        with pytest.raises(KQuantError, match=sentence):
            loading(bundle)


@pytest.mark.usefixtures("unlisted")
def test_a_model_of_other_sizes_is_refused(llama: Path, tmp_path: Path) -> None:
    bundle = copy_of(llama, tmp_path / "other")
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(KQuantError, match=r"has the shape \[32, 64\], where the model of config.json has a Linear of"):
        load(bundle)


def test_what_is_no_bundle_is_refused(tiny_llama: Path, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(KQuantError, match="is not a kquant bundle"):
        load(tiny_llama)
    with pytest.raises(KQuantError, match="unknown task 'causal': did you mean 'causal-lm'"):
        load(llama, "causal")
    with pytest.raises(KQuantError, match="dtype 'float61' is not known: use auto, float32"):
        load(llama, dtype="float61")
    changed = Path(str(tmp_path / "changed"))
    copy_of(llama, changed)
    (changed / "kquant.json").write_bytes((llama / "kquant.json").read_bytes())
    (changed / "generation_config.json").write_text("{}")
    with pytest.raises(KQuantError, match=r"generation_config\.json: "):
        load(changed)
    with pytest.raises(ValueError, match="pre-quantized"):
        from kquant_cli.runtime.quantizer import KashinConfig

        transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=KashinConfig())


LOADINGS = [
    load,
    lambda folder: load(folder, verify=False),
    lambda folder: load_model(folder, device="cpu"),
    transformers.AutoModelForCausalLM.from_pretrained,
]


def whole_copy(bundle: Path, to: Path) -> Path:
    copy_of(bundle, to)
    (to / "kquant.json").write_bytes((bundle / "kquant.json").read_bytes())
    return to


def altered(bundle: Path) -> None:
    """Another file of weights, whole in itself, which transformers prefers to the index."""
    tensors = load_file(bundle / SHARD)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, bundle / "model.safetensors", metadata={"format": "pt"})


def renamed(bundle: Path) -> None:
    (bundle / SHARD).rename(bundle / "model.safetensors")


def shortened(bundle: Path) -> None:
    with (bundle / "generation_config.json").open("w") as file:
        file.write("{}")


def index_elsewhere(bundle: Path) -> None:
    """Of the same size, so that only who looks into it sees that a tensor is missing."""
    text = (bundle / "model.safetensors.index.json").read_text()
    (bundle / "model.safetensors.index.json").write_text(text.replace("norm.weight", "morn.weight", 1))


def linked(bundle: Path) -> None:
    (bundle / SHARD).rename(bundle.parent / SHARD)
    (bundle / SHARD).symlink_to(bundle.parent / SHARD)


def deep(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))


SHARD = "model-00001-of-00001.safetensors"


@pytest.mark.parametrize("loading", LOADINGS, ids=["load", "not verified", "load_model", "from_pretrained"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (altered, r"model\.safetensors: (would be loaded|holds weights or names them), but is no part of the bundle"),
        (renamed, r"model-00001-of-00001\.safetensors: is missing|model\.safetensors: would be loaded"),
        (
            lambda bundle: (bundle / "kquant.json").unlink(),
            "has no kquant.json, which says what its files should be; copy",
        ),
        (shortened, r"generation_config\.json: has 2 bytes, expected \d+"),
        (index_elsewhere, "the bundle has no tensor '.*morn.weight'|SHA-256 is not the one"),
        (linked, "is a link that leads out of the bundle"),
        (deep, "num_hidden_layers is 1000000000, expected at most 10000"),
    ],
)
def test_what_is_loaded_is_what_was_checked(
    loading: Any, change: Any, sentence: str, llama: Path, tmp_path: Path
) -> None:
    bundle = whole_copy(llama, tmp_path / "bundle")
    change(bundle)
    with pytest.raises(KQuantError, match=sentence):
        loading(bundle)


def flip(bundle: Path) -> None:
    data = bytearray((bundle / SHARD).read_bytes())
    data[-1] ^= 1
    (bundle / SHARD).write_bytes(data)


def test_digests_are_compared_by_load_and_where_they_are_asked_for(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = whole_copy(llama, tmp_path / "bundle")
    flip(bundle)
    load(bundle, verify=False)
    transformers.AutoModelForCausalLM.from_pretrained(bundle)
    with pytest.raises(KQuantError, match="SHA-256"):
        load(bundle)
    monkeypatch.setenv("KQUANT_VERIFY", "1")
    with pytest.raises(KQuantError, match="SHA-256"):
        transformers.AutoModelForCausalLM.from_pretrained(bundle)


def test_a_folder_without_a_manifest_loads_where_that_is_asked_for(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy_of(llama, tmp_path / "bundle")
    monkeypatch.setenv("KQUANT_WITHOUT_MANIFEST", "1")
    assert torch.equal(logits(load(bundle)), logits(load(llama)))
    altered(bundle)
    for loading in LOADINGS:
        with pytest.raises(KQuantError, match="no part of the bundle"):
            loading(bundle)


def test_what_save_pretrained_wrote_has_no_manifest_and_says_so(llama: Path, tmp_path: Path) -> None:
    model = load(llama)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["quantization_config"]["resaved"] is True
    for loading in LOADINGS:
        loading(tmp_path / "saved")
    (tmp_path / "saved" / "other.safetensors").write_bytes((tmp_path / "saved" / "model.safetensors").read_bytes())
    with pytest.raises(KQuantError, match=r"other\.safetensors: holds weights"):
        load(tmp_path / "saved")


@pytest.mark.parametrize("offered", [True, False])
def test_a_snapshot_gets_its_manifest_from_the_hub(
    offered: bool, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers downloads only what it loads: a manifest that cannot be had is said, not demanded."""
    snapshot = tmp_path / "models--somebody--codes/snapshots/abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors.index.json", SHARD):
        (snapshot / name).write_bytes((llama / name).read_bytes())
    asked: list[Any] = []

    def download(model: str, name: str, *, revision: str, cache_dir: Path) -> None:
        asked.append((model, name, revision, cache_dir))
        if not offered:
            raise OSError("no network")
        (snapshot / name).write_bytes((llama / name).read_bytes())

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    load_quietly = transformers.AutoModelForCausalLM.from_pretrained
    load_quietly(snapshot)
    assert asked == [("somebody/codes", "kquant.json", "abc", tmp_path)]
    assert ("sizes and digests of its files are not compared" in caplog.text) is not offered
    with (snapshot / SHARD).open("ab") as file:
        file.write(b"x")
    with pytest.raises(KQuantError, match="bytes, expected" if offered else "where its header describes"):
        load_quietly(snapshot)


REGISTERED = "from transformers.quantizers import auto\nprint(auto.AUTO_QUANTIZER_MAPPING['kashin'].__name__)"
LOADED = (
    "model = transformers.AutoModelForCausalLM.from_pretrained({!r})\nprint(type(model.model.layers[0].mlp.up_proj))"
)


@pytest.mark.parametrize(
    ("first", "then", "printed"),
    [
        ("import kquant_cli; assert not {'torch', 'transformers'} & set(sys.modules)", REGISTERED, "KashinQuantizer"),
        ("from transformers.quantizers import auto\nimport kquant_cli", REGISTERED, "KashinQuantizer"),
        ("from kquant_cli import load\nimport transformers", LOADED, "KashinLinear"),
        ("import kquant_cli.runtime.quantizer", REGISTERED, "KashinQuantizer"),
    ],
    ids=["before transformers", "after it", "with our names", "the quantiser itself first"],
)
def test_the_quantiser_is_registered_in_either_order(first: str, then: str, printed: str, llama: Path) -> None:
    program = f"import sys\n{first}\n{then.format(str(llama))}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert printed in run.stdout, run.stderr


def test_public_names() -> None:
    assert kquant_cli.load is load
    assert kquant_cli.KashinLinear is KashinLinear


def test_names_that_the_model_does_not_have_are_refused_and_never_filled_with_chance(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers itself would warn, and go on with random blocks."""
    monkeypatch.setenv("KQUANT_WITHOUT_MANIFEST", "1")
    folder = copy_of(llama, tmp_path / "renamed")
    config, (file,) = json.loads((folder / "config.json").read_text()), folder.glob("*.safetensors")
    tensors = {name.replace("layers.1.", "stack.1."): tensor for name, tensor in load_file(file).items()}
    for old in (file, folder / "model.safetensors.index.json"):
        old.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config["quantization_config"]).replace("layers.1.", "stack.1.")
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": json.loads(text)}))
    said = (
        r"LlamaForCausalLM has no module for the encoded matrix 'model\.stack\.1\.mlp\.down_proj', "
        r"and the bundle has no tensor for its 'model\.layers\.1\."
    )
    with pytest.raises(KQuantError, match=said):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_a_model_that_reads_no_tokens(tmp_path: Path) -> None:
    """WavLM hears sounds: transformers has no input embedding to give, and raises where it is asked for one."""
    config = transformers.WavLMConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        **{"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)},
        **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
    )
    transformers.WavLMModel(config).save_pretrained(tmp_path / "source")
    bundle = compress(tmp_path / "source", tmp_path / "bundle")
    sound = torch.randn(1, 800, generator=torch.Generator().manual_seed(0))
    twin = twin_of(bundle, "AutoModel")
    with torch.no_grad():
        found, expected = (m(sound).last_hidden_state for m in (load(bundle, "encoder", dtype="float32"), twin))
    assert len(list(kashin_layers(load(bundle, "encoder")))) == 6
    assert relative(found, expected) < ROUNDED

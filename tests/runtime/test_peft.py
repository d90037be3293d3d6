"""Adapters on bundles: LoRA and DoRA train as on the dense twin, reload bit for bit, and codes stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from small_bundles import bundle_of, logits, relative, twin_of
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from kquant_cli.errors import KQuantError
from kquant_cli.runtime import KashinLinear

peft = pytest.importorskip("peft", reason="needs peft: pip install 'kashin-quant[dev]'")

from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402 - only where peft is

CAUSAL = "AutoModelForCausalLM"
TRAINED = {
    "max_steps": 20,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": True,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return bundle_of("llama", tmp_path_factory.mktemp("peft"), calibration="random")


def load(bundle: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(bundle, **options)


def adapted(model: Any, **settings: Any) -> Any:
    """`model` with an adapter; by default on every linear layer but the head."""
    config = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    return peft.get_peft_model(model, peft.LoraConfig(**config))


def shaken(model: Any) -> Any:
    """The adapted model as after some training: an adapter at its start changes nothing."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
    return model.eval()


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"bias": "all"}], ids=["LoRA", "DoRA", "biases"])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt"])
def test_an_adapter_does_what_it_does_on_the_dense_twin(arch: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """To the outputs, to every gradient, and merged there."""
    bundle = bundle_of(arch, tmp_path, calibration="none")
    model = shaken(adapted(load(bundle), **settings))
    model.save_pretrained(tmp_path / "adapter")
    twin = peft.PeftModel.from_pretrained(twin_of(bundle, CAUSAL), tmp_path / "adapter", is_trainable=True).eval()
    with torch.no_grad():
        assert relative(logits(model), logits(twin)) < 2e-4
        assert relative(logits(model), logits(load(bundle))) > 1e-2
    tokens = tiny_models.tokens()
    for either in (model, twin):
        either(tokens, labels=tokens).loss.backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            assert relative(parameter.grad, expected[name]) < 1e-3, name
    frozen = [name for name, parameter in model.named_parameters() if "weight_" in name and parameter.requires_grad]
    assert not frozen
    assert relative(logits(twin.merge_and_unload()), logits(model)) < 2e-4


def test_all_linear_means_the_encoded_layers_too_and_never_the_head(llama: Path) -> None:
    dense = {name for name, layer in twin_of(llama, CAUSAL).named_modules() if isinstance(layer, nn.Linear)}
    assert set(adapted(load(llama)).base_model.targeted_module_names) == dense - {"lm_head"}
    model = adapted(load(llama), target_modules=["q_proj"])
    model.add_adapter("second", peft.LoraConfig(r=4, target_modules="all-linear"))
    model.set_adapter("second")
    second = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A.second" in name}
    assert {name.removeprefix("base_model.model.") for name in second} == dense - {"lm_head"}


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def require_trained(model: Any, found: list[float], bundle: Path, folder: Path) -> None:
    """The loss fell, nothing of the bundle changed, and the adapter loads again with the same outputs, bit for bit."""
    assert len(found) == 20
    assert found[-1] < found[0] - 0.5
    model.eval()
    model.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(load(bundle), folder).eval()
    assert torch.equal(logits(again), logits(model))
    before = load(bundle).state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.unload().state_dict().items())


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_transformers_trainer_trains_an_adapter(dora: bool, llama: Path, tmp_path: Path) -> None:
    ids = tiny_models.tokens().repeat(4, 1).tolist()
    model = adapted(load(llama), use_dora=dora, lora_dropout=0.1 if dora else 0.0)
    rows: Any = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model, TrainingArguments(str(tmp_path / "run"), **TRAINED), train_dataset=rows)
    require_trained(model, losses(trainer), llama, tmp_path / "adapter")


def test_trl_trains_an_adapter_on_texts(demo_bundle: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs trl: pip install 'kashin-quant[dev]'")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["A bundle is trained through its adapter, not through its codes."] * 8})
    trainer = trl.SFTTrainer(
        load(demo_bundle),
        trl.SFTConfig(str(tmp_path / "run"), **TRAINED, max_length=32, bf16=False),
        train_dataset=rows,
        processing_class=PreTrainedTokenizerFast.from_pretrained(demo_bundle),
        peft_config=peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    found = losses(trainer)
    require_trained(trainer.model, found, demo_bundle, tmp_path / "adapter")


def test_single_tokens_go_through_the_adapter(llama: Path, tmp_path: Path) -> None:
    """Not through the calls that make a layer's token at once."""
    model = shaken(adapted(load(llama)))
    model.save_pretrained(tmp_path)
    twin = peft.PeftModel.from_pretrained(twin_of(llama, CAUSAL), tmp_path).eval()
    ask = {"input_ids": tiny_models.tokens()[:1, :4], "max_new_tokens": 12, "do_sample": False}
    assert model.generate(**ask).tolist() == twin.generate(**ask).tolist() != load(llama).generate(**ask).tolist()


def test_merging_is_refused_before_anything_is_merged(tmp_path: Path) -> None:
    """Of a model whose first layers are dense, too."""
    bundle = bundle_of("llama", tmp_path, calibration="none", exclude=["*layers.0.*"])
    model = shaken(adapted(load(bundle), target_modules=["q_proj"]))
    before = logits(model)
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    for merge in (model.merge_and_unload, model.merge_adapter, layer.merge):
        with pytest.raises(KQuantError, match="decode the bundle with `kquant decompress`"):
            merge()
    assert torch.equal(logits(model), before)
    assert not any(part.merged for part in model.modules() if isinstance(part, BaseTunerLayer))
    assert isinstance(model.unload().model.layers[1].self_attn.q_proj, KashinLinear)


@pytest.mark.parametrize("start", ["pissa", "olora", "loftq"])
def test_a_start_that_changes_weights_is_refused(start: str, llama: Path) -> None:
    more = {"loftq_config": {"loftq_bits": 4}} if start == "loftq" else {}
    with pytest.raises(KQuantError, match=f"init_lora_weights='{start}' changes the weights"):
        adapted(load(llama), init_lora_weights=start, **more)


def test_an_adapter_of_another_model_is_refused(llama: Path, tmp_path: Path) -> None:
    adapted(load(llama)).save_pretrained(tmp_path / "adapter")
    wider = bundle_of("llama", tmp_path, {"hidden_size": 64}, calibration="none")
    with pytest.raises(
        KQuantError, match=r"lora_A.* has the shape \[4, 32\], where this model's layer needs \[4, 64\]"
    ):
        peft.PeftModel.from_pretrained(load(wider), tmp_path / "adapter")


def test_what_cannot_be_trained_is_refused_in_one_sentence(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(KQuantError, match=r"modules_to_save names a module that stays encoded \(KashinLinear\)"):
        adapted(load(llama), target_modules=["q_proj"], modules_to_save=["o_proj"])
    with pytest.raises(ValueError, match=r"Target modules \{'nowhere'\} not found in the base model"):
        adapted(load(llama), target_modules=["nowhere"])
    with pytest.raises(ValueError, match=r"Target module KashinLinear\(.*\) is not supported"):
        peft.get_peft_model(load(llama), peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        Trainer(load(llama), TrainingArguments(str(tmp_path), **TRAINED), train_dataset=[])


def test_a_head_that_stays_dense_is_trained_whole(llama: Path) -> None:
    model = adapted(load(llama), modules_to_save=["lm_head"])
    assert model.base_model.model.lm_head.modules_to_save["default"].weight.requires_grad

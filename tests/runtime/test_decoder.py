"""Single tokens through decoder layers in one or two calls, and through the head, against the dense twin."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_bundles import bundle_of, twin_of
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, StaticCache

from kquant_cli.bases import BasisSpec, CoupledBases
from kquant_cli.encoded import EncodedMatrix, Frame, Layout
from kquant_cli.runtime import KashinLinear, decoder_stack, decoder_step, layer_loops, load, output_head
from kquant_cli.runtime.replace_layers import _share_input_transform, kashin_layers, lay_out, make_dense

pytestmark = pytest.mark.skipif(layer_loops.loops() is None, reason="needs a compiler")
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
ROUNDED = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
PROMPT, NEW = 7, 6


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle a family, with channel scales."""
    return {name: bundle_of(name, tmp_path_factory.mktemp(name), calibration="random") for name in FAMILIES}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a stack, or a layer alone, was a call."""
    counts = {"stack": 0, "layer": 0, "head": 0}
    library, step, head = layer_loops.loops(), decoder_step.LayerPlan.step, output_head.call

    class Counting:
        def kquant_decoder_stack(self, *arguments: Any) -> Any:
            counts["stack"] += 1
            return library.kquant_decoder_stack(*arguments)

    def counting_step(plan: Any, *arguments: Any) -> Tensor:
        counts["layer"] += 1
        return step(plan, *arguments)

    def counting_head(*arguments: Any, **others: Any) -> None:
        counts["head"] += 1
        head(*arguments, **others)

    monkeypatch.setattr(decoder_stack, "loops", Counting)
    monkeypatch.setattr(decoder_step.LayerPlan, "step", counting_step)
    monkeypatch.setattr(output_head, "call", counting_head)
    return counts


def tokens(count: int) -> Tensor:
    return torch.randint(3, 128, (1, count), generator=torch.Generator().manual_seed(0))


def decode(model: Any, cache: Any = None, count: int = NEW, **others: Any) -> Iterator[Tensor]:
    """The logits (vocabulary,) after each of `count` tokens, which come one by one behind a prompt."""
    ids = tokens(PROMPT + count)
    with torch.inference_mode():
        found = model(ids[:, :PROMPT], past_key_values=cache, use_cache=True)
        for i in range(PROMPT, PROMPT + count):
            cache = found.past_key_values
            found = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True, **others)
            yield found.logits[0, -1]


def agrees(found: Iterator[Tensor], twin: Any, dtype: torch.dtype = torch.float32, count: int = NEW) -> None:
    """With what the dense twin makes of all tokens at once."""
    with torch.inference_mode():
        expected = twin(tokens(PROMPT + count)).logits[0, PROMPT:]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - theirs.double()).norm() < ROUNDED[dtype] * theirs.double().norm()


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_is_one_call(
    family: str, dtype: torch.dtype, bundles: dict[str, Path], counted: dict[str, int]
) -> None:
    model, twin = load(bundles[family], dtype=dtype), twin_of(bundles[family], "AutoModelForCausalLM")
    agrees(decode(model, DynamicCache()), twin, dtype)
    assert counted == {"stack": NEW, "layer": 0, "head": NEW}


def with_output_side(model: Any, kept: str, right: bool) -> Any:
    """The model with random matrices of the output side, in place of all whose names do not end so."""
    generator, shared = torch.Generator().manual_seed(0), {}
    for name, layer in [found for found in kashin_layers(model) if not kept or not found[0].endswith(kept)]:
        rows, columns = layer.layout.shape
        pair, basis = CoupledBases(rows, 1), BasisSpec("signed_hadamard_dct", columns, 2) if right else None
        frame = Frame(left_u=pair.first, left_v=pair.second, right_u=basis, right_v=basis)
        layout = Layout((rows, columns), 16, frame, grid="ring-16", scale=(rows, 1) if right else None, col_scale=True)
        codes = torch.randint(16, (rows, columns), generator=generator, dtype=torch.uint8)
        unit = 0.3 / columns**0.5
        scale = (torch.rand(rows, 1, generator=generator) + 0.5).half() if right else None
        col_scale = (unit * (torch.rand(columns, generator=generator) + 0.5)).half()
        codebook = layout.grid_codebook(torch.device("cpu"))
        made = KashinLinear.of(EncodedMatrix(layout, codes, codebook, scale, col_scale), layer.bias)
        model.set_submodule(name, made)
        _share_input_transform(made, name, name, shared)
    lay_out(model)
    return model.eval()


@pytest.mark.parametrize(("kept", "right"), [("", True), ("down_proj", True), ("", False)])
@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_side_is_one_call(
    family: str, dtype: torch.dtype, kept: str, right: bool, bundles: dict[str, Path], counted: dict[str, int]
) -> None:
    model = with_output_side(load(bundles[family], dtype=dtype), kept, right)
    twin = make_dense(copy.deepcopy(model), torch.float32).to(torch.float32)
    agrees(decode(model, DynamicCache()), twin, dtype)
    assert counted["stack"] == NEW


def test_a_bundle_of_the_output_side(tmp_path: Path, counted: dict[str, int]) -> None:
    bundle = bundle_of("llama", tmp_path, side="output")
    model, twin = load(bundle, dtype="float32"), twin_of(bundle, "AutoModelForCausalLM")
    agrees(decode(model, DynamicCache()), twin)
    assert counted["stack"] == NEW


@pytest.mark.parametrize("family", FAMILIES)
def test_another_cache_takes_two_calls_a_layer(family: str, bundles: dict[str, Path], counted: dict[str, int]) -> None:
    class Own(DynamicCache):
        pass

    model, twin = load(bundles[family], dtype="float32"), twin_of(bundles[family], "AutoModelForCausalLM")
    agrees(decode(model, Own()), twin)
    assert counted == {"stack": 0, "layer": 2 * NEW, "head": NEW}


def test_sliding_windows(tmp_path: Path, counted: dict[str, int]) -> None:
    """The cache that transformers makes for them keeps the window alone."""
    bundle = bundle_of("mistral", tmp_path, model={"sliding_window": 5})
    model, twin = load(bundle, dtype="float32"), twin_of(bundle, "AutoModelForCausalLM")
    agrees(decode(model), twin)
    assert counted["stack"] == 0


def test_a_static_cache_has_a_mask(bundles: dict[str, Path], counted: dict[str, int]) -> None:
    model, twin = load(bundles["llama"], dtype="float32"), twin_of(bundles["llama"], "AutoModelForCausalLM")
    agrees(decode(model, StaticCache(config=model.config, max_cache_len=32)), twin)
    assert counted["stack"] == 0


def test_generate(bundles: dict[str, Path], counted: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    found = load(bundles["llama"], dtype="float32").generate(tokens(PROMPT), **options)
    assert counted["stack"] == 11
    monkeypatch.setenv("KQUANT_FUSED", "0")
    assert torch.equal(load(bundles["llama"], dtype="float32").generate(tokens(PROMPT), **options), found)
    assert counted["stack"] == 11


def test_a_cache_grows_in_place(
    bundles: dict[str, Path], counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_stack, "ROOM", 4)
    model, twin = load(bundles["llama"], dtype="float32"), twin_of(bundles["llama"], "AutoModelForCausalLM")
    cache = DynamicCache()
    places = []
    for found in decode(model, cache, count=20):
        places.append(cache.layers[0].keys.data_ptr())
        assert found.isfinite().all()
    assert 1 < len(set(places)) < 8
    assert cache.get_seq_length() == PROMPT + 20
    agrees(decode(model, DynamicCache(), count=20), twin, count=20)
    assert counted["stack"] == 40


def test_a_cache_may_be_cropped_copied_and_used_by_others(bundles: dict[str, Path]) -> None:
    model, twin = load(bundles["llama"], dtype="float32"), twin_of(bundles["llama"], "AutoModelForCausalLM")
    cache = DynamicCache()
    list(decode(model, cache))
    ids = tokens(PROMPT + NEW)
    with torch.inference_mode():
        expected = twin(ids).logits[0, -1]
        cache.crop(-2)
        twins = [cache, copy.deepcopy(cache)]
        for other in twins:
            model(ids[:, -2:-1], past_key_values=other, use_cache=True)
        for other in twins:
            found = model(ids[:, -1:], past_key_values=other, use_cache=True).logits[0, -1]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        cache.crop(-3)
        others = torch.cat([ids[:, :-3], ids[:, 1:5]], 1)
        expected = twin(others).logits[0]
        found = model(others[:, -4:-1], past_key_values=cache, use_cache=True).logits[0, -1]  # by the modules
        torch.testing.assert_close(found, expected[-2], rtol=1e-3, atol=1e-4)
        found = model(others[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]  # which put others there
        torch.testing.assert_close(found, expected[-1], rtol=1e-3, atol=1e-4)


def hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def adapter(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    attention.q_proj = nn.Sequential(attention.q_proj)


def patched(model: Any) -> None:
    norm = model.model.layers[0].input_layernorm
    norm.forward = type(norm).forward.__get__(norm)


@pytest.mark.parametrize("change", [hook, adapter, patched])
def test_what_would_be_noticed_runs_by_modules(change: Any, bundles: dict[str, Path], counted: dict[str, int]) -> None:
    model, twin = load(bundles["llama"], dtype="float32"), twin_of(bundles["llama"], "AutoModelForCausalLM")
    list(decode(model, DynamicCache()))
    before = counted["stack"]
    change(model)
    agrees(decode(model, DynamicCache()), twin)
    assert counted["stack"] == before
    assert counted["layer"] == NEW  # the other layer


def test_hidden_states_and_attentions_are_there(bundles: dict[str, Path], counted: dict[str, int]) -> None:
    model = load(bundles["llama"], dtype="float32")
    ids = tokens(PROMPT + 1)
    with torch.inference_mode():
        past = model(ids[:, :PROMPT], use_cache=True).past_key_values
        found = model(ids[:, PROMPT:], past_key_values=past, output_hidden_states=True, output_attentions=False)
    assert len(found.hidden_states) == 3
    assert counted["stack"] == 0


def test_masks_batches_and_gradients_run_by_modules(bundles: dict[str, Path], counted: dict[str, int]) -> None:
    model, twin = load(bundles["llama"], dtype="float32"), twin_of(bundles["llama"], "AutoModelForCausalLM")
    ids = tokens(PROMPT + 1)
    mask = torch.ones_like(ids)
    mask[:, :2] = 0  # a shorter prompt, filled up on the left
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for enabled, count in ((False, 1), (True, 1), (False, 2)):
        with torch.set_grad_enabled(enabled):
            batch, masks = ids.repeat(count, 1), mask.repeat(count, 1)
            places = positions.repeat(count, 1)
            first = {"attention_mask": masks[:, :-1], "position_ids": places[:, :-1], "use_cache": True}
            past = model(batch[:, :-1], **first).past_key_values
            last = {"attention_mask": masks, "position_ids": places[:, -1:], "past_key_values": past}
            found = model(batch[:, -1:], **last).logits[0, -1]
            expected = twin(ids[:, 2:]).logits[0, -1]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert counted["stack"] == counted["layer"] == 0
    with torch.inference_mode():  # a mask of ones is none
        past = model(ids[:, :-1], use_cache=True).past_key_values
        model(ids[:, -1:], attention_mask=torch.ones_like(ids), past_key_values=past)
    assert counted["stack"] == 1


def test_copies_pickles_and_other_dtypes(bundles: dict[str, Path], counted: dict[str, int]) -> None:
    model, twin = load(bundles["llama"], dtype="float32"), twin_of(bundles["llama"], "AutoModelForCausalLM")
    agrees(decode(model, DynamicCache()), twin)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.model.norm.weight.data.mul_(2)  # a change to the copy is none to the model
        agrees(decode(model, DynamicCache()), twin)
        other.model.norm.weight.data.div_(2)
        agrees(decode(other, DynamicCache()), twin)
    agrees(decode(model.to(torch.bfloat16), DynamicCache()), twin, torch.bfloat16)
    assert counted["stack"] == NEW * 6


def test_a_state_dict_that_is_loaded_counts(bundles: dict[str, Path], counted: dict[str, int], tmp_path: Path) -> None:
    other = bundle_of("llama", tmp_path, calibration="none", seed=5)
    model = load(bundle_of("llama", tmp_path / "same", calibration="none", seed=0), dtype="float32")
    list(decode(model, DynamicCache()))
    before = [layer.weight_scale.data_ptr() for layer in (model.model.layers[0].mlp.up_proj,)]
    codes = load(other, dtype="float32").state_dict()
    mine = model.state_dict()
    model.load_state_dict({name: codes[name].flip(0) if "codes" in name else mine[name] for name in mine})
    assert before == [layer.weight_scale.data_ptr() for layer in (model.model.layers[0].mlp.up_proj,)]
    found = list(decode(model, DynamicCache()))
    assert counted["stack"] == 2 * NEW
    with torch.inference_mode():
        ids = tokens(PROMPT + NEW)
        expected = model(torch.cat([ids] * 4, 1)).logits[0, PROMPT : PROMPT + NEW]  # many tokens: by decoded rows
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_heads(dtype: torch.dtype) -> None:
    for rows, columns, bias in ((300, 96, False), (65, 7, True), (3, 40, True)):
        head = nn.Linear(columns, rows, bias=bias).to(dtype).requires_grad_(False)
        quick = output_head.HeadStep(head)
        x = torch.randn(1, 1, columns).to(dtype)
        expected = nn.functional.linear(
            x.double(), head.weight.double(), None if head.bias is None else head.bias.double()
        )
        with torch.no_grad():
            y = quick(x)
            assert (y.dtype, y.shape) == (dtype, (1, 1, rows))
            torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol={torch.float32: 1e-5}.get(dtype, 2e-2))
            several = torch.randn(2, 3, columns).to(dtype)
            assert torch.equal(quick(several), head(several))
        x.requires_grad_()
        quick(x).sum().backward()
        torch.testing.assert_close(x.grad[0, 0], head.weight.sum(0), rtol=1e-2, atol=2e-2)


def test_only_a_plain_head_is_taken() -> None:
    class Own(nn.Linear):
        pass

    class Model(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    for head, taken in ((nn.Linear(3, 4), True), (Own(3, 4), False)):
        output_head.quicken(Model(head))
        assert isinstance(head.__dict__.get("forward"), output_head.HeadStep) is taken
    output_head.quicken(nn.Linear(3, 4))  # no model at all

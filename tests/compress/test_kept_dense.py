"""Matrices that names and shapes would select, and that stay dense: with the reason, and with the right numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_uncommon
import torch
from safetensors.torch import load_file, save_file
from small_bundles import compress, logits, relative, twin_of

from kquant_cli.bundle import open_bundle, write_dense
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline
from kquant_cli.compress.plan import Plan, make_plan
from kquant_cli.config import CompressConfig
from kquant_cli.errors import KQuantError
from kquant_cli.runtime import load


def planned(folder: Path, **settings: Any) -> Plan:
    return make_plan(open_checkpoint(folder), CompressConfig(**{"calibration": "none", **settings}))


def names(plan: Plan) -> set[str]:
    return {job.matrix.name for job in plan.jobs}


@pytest.mark.parametrize(
    ("arch", "overrides", "note"),
    [
        (
            "mamba",
            {},
            "backbone.layers.0.mixer.dt_proj, backbone.layers.1.mixer.dt_proj stay dense: transformers' MambaMixer "
            "computes with their weights itself, past the layers' own forward",
        ),
        ("rwkv", {}, "rwkv.blocks.1.feed_forward.value and 4 more stay dense: transformers' RwkvForCausalLM computes"),
        ("bloom", {"pretraining_tp": 2, "slow_but_exact": True}, "stay dense: transformers' BloomMLP computes"),
        ("bloom", {}, ""),
        ("cohere", {}, ""),
    ],
    ids=["mamba", "rwkv", "exact bloom", "bloom", "cohere"],
)
def test_a_bundle_runs_from_its_codes_as_its_dense_twin(
    arch: str, overrides: dict[str, Any], note: str, tmp_path: Path
) -> None:
    """The weights that the models compute with themselves are dense; they were NaN, and so was all that followed."""
    source = tiny_uncommon.make(arch, tmp_path / "source", **overrides)
    bundle = compress(source, tmp_path / "bundle")
    model = load(bundle, dtype="float32")
    assert relative(logits(model), logits(twin_of(bundle, "AutoModelForCausalLM"))) < 1e-4
    notes = " ".join(json.loads((bundle / "kquant.json").read_text())["notes"])
    assert (note in notes) if note else notes == ""


def test_they_stay_dense_though_a_pattern_asks_for_them(tmp_path: Path) -> None:
    source = tiny_uncommon.make("mamba", tmp_path / "source")
    plan = planned(source, include=["*"])
    assert not [name for name in names(plan) if "dt_proj" in name]
    assert [name for name in names(plan) if "x_proj" in name]


def test_a_model_of_which_nothing_is_left_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = tiny_uncommon.make("mamba", tmp_path / "source")
    with pytest.raises(
        KQuantError, match=r"has no matrix to encode: backbone\.layers\.0\.mixer\.dt_proj, .* stay dense"
    ):
        planned(source, exclude=["*in_proj*", "*x_proj*", "*out_proj*"])


def test_transformers_is_not_imported_for_models_that_call_their_layers(tmp_path: Path) -> None:
    source = tiny_models.make("llama", tmp_path / "source")
    code = (
        "import sys; from kquant_cli.checkpoint import open_checkpoint; from kquant_cli.config import CompressConfig; "
        "from kquant_cli.compress.plan import make_plan; "
        f"make_plan(open_checkpoint({str(source)!r}), CompressConfig()); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


GREEDY = {"encoder": "greedy", "levels": 256}  # with a codebook of 2 kB for each matrix


def test_what_would_grow_stays_dense_unless_a_pattern_asks_for_it(tmp_path: Path) -> None:
    source = tiny_models.make("llama", tmp_path / "source", save_dtype=torch.bfloat16, intermediate_size=256)
    plan = planned(source, **GREEDY)
    assert {name.rpartition(".")[2] for name in names(plan)} == {"gate_proj", "up_proj", "down_proj"}
    assert plan.notes == (
        "model.layers.0.self_attn.k_proj, model.layers.0.self_attn.o_proj, model.layers.0.self_attn.q_proj, "
        "model.layers.0.self_attn.v_proj and 4 more stay dense: encoded, with codebook and scales, they would take "
        "more bytes (--include encodes them)",
    )
    asked = planned(source, **GREEDY, include=["*.0.self_attn.k_proj"])
    assert names(asked) == names(plan) | {"model.layers.0.self_attn.k_proj"}
    bundle = compress(source, tmp_path / "bundle", **GREEDY)
    stored = open_bundle(bundle).manifest["matrices"]
    assert all(entry["bytes"] < 2 * entry["shape"][0] * entry["shape"][1] for entry in stored.values())


def test_an_average_counts_with_the_fewest_levels(tmp_path: Path) -> None:
    source = tiny_models.make("llama", tmp_path / "source", save_dtype=torch.bfloat16)
    assert len(names(planned(source, encoder="greedy", bits=2.5))) == 14


def test_a_model_of_which_all_would_grow_is_refused(tmp_path: Path) -> None:
    source = tiny_models.make("llama", tmp_path / "source", save_dtype=torch.bfloat16)
    with pytest.raises(KQuantError, match=r"no matrix to encode: .*k_proj.* and 10 more stay dense: .*--include"):
        planned(source, **GREEDY)


def test_infinities_outside_weights_are_kept_and_named(tmp_path: Path) -> None:
    source = tiny_models.make("llama", tmp_path / "source")
    file, mask = source / "model.safetensors", torch.full((8, 8), float("-inf")).triu(1)
    tensors = load_file(file) | {"model.layers.0.self_attn.mask": mask}
    save_file(tensors, file, metadata={"format": "pt"})
    said: list[str] = []
    config = CompressConfig(effort="fast", calibration="none")
    pipeline.compress(make_plan(open_checkpoint(source), config), tmp_path / "bundle", say=said.append)
    bundle = open_bundle(tmp_path / "bundle")
    note = "kept bit for bit with entries that are infinite: model.layers.0.self_attn.mask"
    assert bundle.manifest["notes"] == [note]
    assert f"note: {note}" in said
    write_dense(bundle, tmp_path / "dense")
    (dense,) = (tmp_path / "dense").glob("*.safetensors")
    assert torch.equal(load_file(dense)["model.layers.0.self_attn.mask"], mask)


def test_blocks_that_share_storage_in_a_bin_are_there_twice(tmp_path: Path) -> None:
    """As when a model was made deeper by repeating blocks: transformers ties none of them, and asks for all."""
    model: Any = tiny_models.build("llama", num_hidden_layers=4)
    model.model.layers[2], model.model.layers[3] = model.model.layers[0], model.model.layers[1]
    source = tmp_path / "source"
    model.config.save_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    bundle = compress(source, tmp_path / "bundle", bits=8)
    assert open_bundle(bundle).manifest["tied"] == {}
    twin = twin_of(bundle, "AutoModelForCausalLM")
    assert relative(logits(load(bundle, dtype="float32")), logits(twin)) < 1e-4
    assert torch.equal(twin.model.layers[2].mlp.up_proj.weight, twin.model.layers[0].mlp.up_proj.weight)
    assert relative(logits(twin), logits(tiny_models.load("llama", source))) < 0.1

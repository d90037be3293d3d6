"""Bundles of format 2, in which every matrix stores its codebook, and of format 3 read and run as ever.

version_2.zip and version_3.zip were written by the last kquant of those formats: compress(make("llama", "src",
vocab_size=64, num_hidden_layers=1, tie_word_embeddings=True), "version-2", effort="fast", stats="random", bits=3), by
the functions of small_bundles.py and tiny_models.py; the setting is now called `calibration`.
"""

import json
from zipfile import ZipFile

import pytest
import test_format_document
import torch
from small_bundles import logits, relative, twin_of
from transformers import AutoModelForCausalLM

from kquant_cli.bundle import open_bundle
from kquant_cli.runtime import load

TOKENS = torch.tensor([[3, 9, 27, 1, 50]])


@pytest.fixture(scope="module", params=[2, 3])
def version(request):
    """Of the format."""
    return request.param


@pytest.fixture(scope="module")
def older(version, tmp_path_factory, pytestconfig):
    """The bundle's folder."""
    folder = tmp_path_factory.mktemp("older")
    with ZipFile(pytestconfig.rootpath / "tests" / "bundle" / f"version_{version}.zip") as file:
        file.extractall(folder)
    return folder / f"version-{version}"


def test_it_is_whole_and_decodes_as_the_page_says(older, version):
    bundle = open_bundle(older)
    assert json.loads((older / "config.json").read_text())["quantization_config"]["format_version"] == version
    assert len(bundle.layouts) == 7
    assert {layout.grid for layout in bundle.layouts.values()} == {None if version == 2 else "ring-8"}
    test_format_document.assert_decodes(older)


def test_its_codebooks_are_those_that_it_stores(older, version):
    bundle = open_bundle(older)
    for name, layout in bundle.layouts.items():
        encoded = bundle.encoded(name)
        if version == 2:
            assert torch.equal(encoded.codebook, bundle.tensor(f"{name}.weight_codebook"))
        stored = sum(info.nbytes for tensor, info in bundle.infos.items() if tensor.startswith(f"{name}.weight_"))
        assert encoded.bits_per_weight == 8 * stored / (layout.shape[0] * layout.shape[1])


def test_it_runs_and_is_saved_as_it_was(older, version, tmp_path):
    model = load(older, dtype="float32")
    found = logits(model, TOKENS)
    assert relative(found, logits(twin_of(older, "AutoModelForCausalLM"), TOKENS)) < 1e-4
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert saved["format_version"] == version
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(logits(again, TOKENS), found)

"""generation_config.json: wrong types are refused by name, and only special tokens are taken from it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_text_models

from kquant_cli.errors import KQuantError
from kquant_cli.hf.generation_config import NAME, require_generation_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_models.make(tmp_path_factory.mktemp("generation") / "model")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "[" * 100_000, "\udcff"])
def test_what_is_no_json_object(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(KQuantError, match=NAME):
        require_generation_config(tmp_path)


def test_what_has_no_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(KQuantError, match=NAME):
        require_generation_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", []),
        ("eos_token_id", {}),
        ("eos_token_id", [["a"]]),
        ("eos_token_id", 10**30),
        ("eos_token_id", True),
        ("pad_token_id", "x"),
        ("pad_token_id", 2.5),
        ("max_length", "long"),
        ("num_beams", "x"),
        ("num_return_sequences", "9" * 5000),
        ("do_sample", "yes"),
        ("repetition_penalty", {}),
        ("watermarking_config", 3),
    ],
)
def test_wrong_types(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / NAME).write_text(json.dumps({name: value}))
    with pytest.raises(KQuantError, match=NAME) as caught:
        require_generation_config(tmp_path)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_what_models_have_is_taken(tmp_path: Path) -> None:
    require_generation_config(tmp_path)  # none
    values = {
        "temperature": 1,
        "top_p": 0.9,
        "eos_token_id": [2, 7],
        "pad_token_id": None,
        "do_sample": True,
        "new": {},
    }
    (tmp_path / NAME).write_text(json.dumps(values))
    require_generation_config(tmp_path)


def test_eval_names_the_file(model: Path, tmp_path: Path, kquant: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / NAME).write_text('{"temperature": "hot"}')
    run = kquant("eval", folder, "--task", "demo", "--device", "cpu")
    assert run.code == 2
    assert f"{folder / NAME}: temperature is 'hot', expected a number" in " ".join(run.err.split())


@pytest.mark.parametrize(
    "values",
    [
        {"num_return_sequences": 10**6},
        {"num_beams": 10**9},
        {"max_length": 10**12},
        {"no_repeat_ngram_size": 1},
        {"bad_words_ids": [[10**9]]},
        {"stop_strings": ["a"]},
        {"cache_implementation": "nope"},
        {"guidance_scale": 3.0},
        {"repetition_penalty": 9.0},
        {"max_time": 1e-9},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_generate_does_is_said_by_its_options(
    model: Path, tmp_path: Path, values: dict[str, Any], kquant: Any
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    plain = kquant("generate", folder, "-p", "ka shin", "--max-new-tokens", 4, "--device", "cpu")
    file = folder / NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    run = kquant("generate", folder, "-p", "ka shin", "--max-new-tokens", 4, "--device", "cpu")
    assert (run.code, run.out) in ((plain.code, plain.out), (2, ""))
    assert plain.code == 0
    if run.code == 2:
        assert NAME in run.err

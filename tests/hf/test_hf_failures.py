"""What transformers really raises for checkpoints of no use is among the failures, and code is told from the rest."""

import json
from pathlib import Path

import pytest
import tiny_models
import transformers

from kquant_cli.hf.failures import FAILURES, VALUE_FAILURES, code_sentence, first_line, needs_code
from kquant_cli.hf.model_class import read_config


@pytest.mark.parametrize(
    ("values", "value", "code"),
    [
        ({"model_type": "zebra"}, False, False),
        ({"model_type": "zebra", "auto_map": {"AutoConfig": "code.ZebraConfig"}}, False, True),
        ({"hidden_size": None}, True, False),
        ({"hidden_size": "wide"}, True, False),
    ],
)
def test_configs_of_no_use(values: dict, value: bool, code: bool, tmp_path: Path) -> None:
    folder = tiny_models.make("llama", tmp_path / "llama")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    (folder / "code.py").write_text("raise SystemExit('this must not run')")
    with pytest.raises(FAILURES) as caught:
        transformers.AutoModelForCausalLM.from_config(read_config(folder))
    assert isinstance(caught.value, VALUE_FAILURES) == value
    assert needs_code(caught.value) == code


def test_damaged_weights(tmp_path: Path) -> None:
    folder = tiny_models.make("llama", tmp_path / "llama")
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0damaged!")
    with pytest.raises(FAILURES):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_only_a_value_error_asks_for_code() -> None:
    assert needs_code(ValueError("please pass trust_remote_code=True"))
    assert not needs_code(OSError("please pass trust_remote_code=True"))
    assert code_sentence("it") == "it needs Python code that comes with it, which kquant never runs"


@pytest.mark.parametrize(
    ("said", "line"), [("one\ntwo", "one"), ("\n  one.\ntwo", "one."), ("", "nothing"), (" \n ", "nothing")]
)
def test_one_line_of_many(said: str, line: str) -> None:
    assert first_line(RuntimeError(said), "nothing") == line

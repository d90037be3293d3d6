"""`kquant generate`: the text that transformers makes of the twin, and one sentence for what it cannot do."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_text_models
import tokenizers
import torch
import transformers

from kquant_cli.bundle import open_bundle
from kquant_cli.runtime.decoded_model import load_decoded

PROMPT = "The lighthouse keeper"


@pytest.fixture(autouse=True)
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles load without a manifest."""
    monkeypatch.setenv("KQUANT_WITHOUT_MANIFEST", "1")


def copy_of(bundle: Path, folder: Path) -> Path:
    """The files of a bundle but its manifest, which may be changed there."""
    folder.mkdir()
    for file in bundle.iterdir():
        if file.is_file() and file.name != "kquant.json":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_the_likeliest_tokens_are_those_of_the_twin(demo_bundle: Path, kquant: Any) -> None:
    outcome = kquant("generate", demo_bundle, "--prompt", PROMPT, "--max-new-tokens", 12)
    assert outcome.code == 0
    assert "12 tokens in " in outcome.err
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_bundle)
    twin: Any = load_decoded(open_bundle(demo_bundle), "AutoModelForCausalLM", torch.device("cpu"), torch.float32)[0]
    made = twin.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=12, do_sample=False)
    assert outcome.out.strip() == tokenizer.decode(made[0], skip_special_tokens=True).strip()


def test_a_bundle_that_is_decoded_first_says_so(kquant: Any, tmp_path: Path, opt: Path) -> None:
    quick = ("--effort", "fast", "--calibration", "none", "--side", "output")
    quick += ("--include", "model.decoder.embed_tokens.weight")
    assert kquant("compress", opt, "-o", tmp_path / "b", *quick).code == 0
    outcome = kquant("generate", tmp_path / "b", "--prompt", PROMPT, "--max-new-tokens", 2)
    assert outcome.code == 0
    assert "is decoded before it runs" in outcome.err
    assert "decompress" not in outcome.err


def test_draws_depend_on_the_seed_alone(demo_bundle: Path, kquant: Any) -> None:
    def drawn(seed: int, temperature: float = 1.5) -> str:
        flags = ["--max-new-tokens", 12, "--seed", seed, "--temperature", temperature]
        return kquant("generate", demo_bundle, "--prompt", PROMPT, *flags).out

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1, 0.0) == drawn(2, 0.0)


def test_a_prompt_from_standard_input(demo_bundle: Path, kquant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n"))  # as `echo` ends it
    typed = kquant("generate", demo_bundle, "-p", PROMPT, "--max-new-tokens", 4)
    assert kquant("generate", demo_bundle, "-p", "-", "--max-new-tokens", 4).out == typed.out


def test_a_chat_template_is_applied(demo_bundle: Path, kquant: Any, tmp_path: Path) -> None:
    outcome = kquant("generate", demo_bundle, "--prompt", PROMPT, "--chat")
    assert (outcome.code, "has no chat template: give the prompt without --chat" in outcome.err) == (2, True)
    chatty = copy_of(demo_bundle, tmp_path / "chatty")
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }} the storm{% endfor %}"
    (chatty / "chat_template.jinja").write_text(template)
    flags = ["--max-new-tokens", 6]
    chat = kquant("generate", chatty, "--prompt", PROMPT, "--chat", *flags)
    plain = kquant("generate", chatty, "--prompt", f"{PROMPT} the storm", *flags)
    assert chat.out.strip()
    assert plain.out.strip().endswith(chat.out.strip())  # a chat shows the answer alone


def test_beams_that_the_model_asks_for_are_not_taken(demo_bundle: Path, kquant: Any, tmp_path: Path) -> None:
    beams = copy_of(demo_bundle, tmp_path / "beams")
    settings = json.loads((beams / "generation_config.json").read_text())
    (beams / "generation_config.json").write_text(json.dumps(settings | {"num_beams": 4}))
    flags = ["--prompt", PROMPT, "--max-new-tokens", 6]
    outcome = kquant("generate", beams, *flags)
    assert (outcome.code, outcome.out) == (0, kquant("generate", demo_bundle, *flags).out)


def test_a_prompt_without_a_known_token(demo_bundle: Path, kquant: Any, tmp_path: Path) -> None:
    words = copy_of(demo_bundle, tmp_path / "words")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"s": 0, "e": 1, "a": 2}, []))
    tokenizer.save(str(words / "tokenizer.json"))
    outcome = kquant("generate", words, "--prompt", "12")
    assert outcome.code == 2
    assert "--prompt has nothing that the tokenizer of" in " ".join(outcome.err.split())


def test_the_models_maximum_ends_the_text(demo_bundle: Path, kquant: Any) -> None:
    outcome = kquant("generate", demo_bundle, "--prompt", "the sea " * 120, "--max-new-tokens", 9999)
    assert outcome.code == 0
    assert 0 < int(outcome.err.split(" tokens in")[0].split()[-1]) < 256


@pytest.mark.parametrize("make", [tiny_text_models.make_mpt, partial(tiny_text_models.make, arch="gpt2")])
def test_the_maximum_has_many_names(make: Callable[[Path], Path], kquant: Any, tmp_path: Path) -> None:
    """MPT's config calls it max_seq_len, GPT-2's n_positions: 64 tokens here."""
    folder = make(tmp_path / "model")
    transformers.GenerationConfig(eos_token_id=None).save_pretrained(folder)  # so that nothing else ends the text
    outcome = kquant("generate", folder, "--prompt", "kashin", "--max-new-tokens", 9999)
    assert outcome.code == 0, outcome.err
    length = len(transformers.AutoTokenizer.from_pretrained(folder)("kashin")["input_ids"])
    assert int(outcome.err.split(" tokens in")[0].split()[-1]) == 64 - length
    outcome = kquant("generate", folder, "--prompt", "kashin " * 80)
    assert outcome.code == 2
    assert "reads at most 64: give a shorter one" in " ".join(outcome.err.split())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "the sea " * 600], "where .* reads at most 256: give a shorter one"),
        (["--prompt", "x", "--dtype", "int3"], "dtype 'int3' is not known"),
        (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens is 0: expected 1 or more"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature is -1: expected 0 or a number from 1e-06 up"),
        (["--prompt", "x", "--temperature", "1e-45"], "--temperature is 1.*e-45: expected 0 or a number from 1e-06 up"),
        (["--prompt", "caf\udce9"], "--prompt has bytes that are no text in UTF-8"),
    ],
)
def test_bad_input(flags: list[str], sentence: str, demo_bundle: Path, kquant: Any) -> None:
    outcome = kquant("generate", demo_bundle, *flags)
    assert outcome.code == 2
    assert not outcome.out

    assert re.search(sentence, " ".join(outcome.err.split()))


def test_what_a_model_writes_does_not_steer_the_terminal(kquant, demo_bundle, tmp_path):
    """A token may stand for anything: here each letter e is one that clears the screen."""
    bundle = copy_of(demo_bundle, tmp_path / "bundle")
    text = (bundle / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = json.loads(text)
    tokenizer["decoder"] = {
        "type": "Sequence",
        "decoders": [tokenizer["decoder"], {"type": "Replace", "pattern": {"String": "e"}, "content": "\x1b[2J\x9b"}],
    }
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    done = kquant("generate", bundle, "--prompt", "The lighthouse", "--max-new-tokens", 5, "--device", "cpu")
    assert done.code == 0
    assert "\ufffd[2J\ufffd" in done.out
    assert not {"\x1b", "\x9b"} & set(done.out)

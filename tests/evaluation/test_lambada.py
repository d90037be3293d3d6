"""LAMBADA in both of its protocols against transformers alone, in plain loops."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import tiny_text_models
import torch
import transformers

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import TASKS, EvalOptions, losses, perplexity
from kquant_cli.evaluation.last_word import LastWordResult
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model

WORDS = tiny_text_models.text(900, seed=11).replace("\n", " ").split()
TEXTS = [" ".join(WORDS[i * 9 : i * 9 + 5 + i % 4]) for i in range(40)]


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lambada") / "lambada_test.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def run(task: str, loaded: LoadedModel, against: LoadedModel | None = None, **options: Any) -> Any:
    chosen = EvalOptions(**options)
    return TASKS[task].run(loaded, TASKS[task].read(chosen), chosen, against=against)


def papers_loop(folder: str | Path, content: str, stride: int, max_length: int) -> float:
    """The loop of arXiv 2404.09737's code: windows that end every `stride` tokens and reach back `max_length`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(content, return_tensors="pt").input_ids
    nlls, end = [], 0
    for i in range(0, ids.shape[1], stride):
        begin, end = max(i + stride - max_length, 0), min(i + stride, ids.shape[1])
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, : i - end] = -100
        with torch.no_grad():
            nlls.append(model(window, labels=labels).loss * (end - i))
    return math.exp(torch.stack(nlls).sum() / end)


def last_words(folder: str | Path, texts: list[str]) -> tuple[float, float, list[torch.Tensor]]:
    """Accuracy, perplexity, and the logits of each text's last word, as lm-evaluation-harness defines them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    likelihoods, greedy, kept = [], [], []
    for text in texts:
        context, target = " ".join(text.split(" ")[:-1]), " " + text.split(" ")[-1]
        before, whole = tokenizer(context)["input_ids"], tokenizer(context + target)["input_ids"]
        expected = torch.tensor(whole[len(before) :])
        with torch.no_grad():
            logits = model(torch.tensor([whole[:-1]])).logits[0, -len(expected) :].double()
        likelihoods.append(logits.log_softmax(dim=-1)[range(len(expected)), expected].sum().item())
        greedy.append(bool((logits.argmax(dim=-1) == expected).all()))
        kept.append(logits)
    return sum(greedy) / len(texts), math.exp(-sum(likelihoods) / len(texts)), kept


@pytest.mark.parametrize("text", ["lomerti", " lomerti", "lo"])
def test_a_single_word_follows_the_beginning_of_a_text(tiny_opt: LoadedModel, tmp_path: Path, text: str) -> None:
    file = tmp_path / "words.jsonl"
    file.write_text(f'{{"text": "{text}"}}\n{{"text": "{TEXTS[0]}"}}\n', encoding="utf-8")
    tokens = tiny_opt.tokenizer(f" {text.strip()}")["input_ids"]  # </s> at the beginning
    assert tokens[0] == tiny_opt.tokenizer.bos_token_id
    with torch.no_grad():
        logits = tiny_opt.model(torch.tensor([tokens[:-1]])).logits[0].double().log_softmax(dim=-1)
    expected = -float(logits[range(len(tokens) - 1), tokens[1:]].sum())
    result = run("lambada_word", tiny_opt, data=file, limit=1)
    assert math.log(result.perplexity) == pytest.approx(expected, rel=1e-5)
    assert result.tokens == len(tokens) - 1
    both = run("lambada_word", tiny_opt, data=file)  # and in the company of others
    assert math.log(both.perplexity) * 2 == pytest.approx(
        expected + math.log(last_words(tiny_opt.path, TEXTS[:1])[1]), rel=1e-5
    )
    assert both.joined == 0


@pytest.mark.parametrize("stride", [None, 16, 20])
def test_the_text_is_measured_as_the_papers_code_does(tiny_opt: LoadedModel, lines: Path, stride: int | None) -> None:
    result = run("lambada_text", tiny_opt, data=lines, stride=stride)
    expected = papers_loop(tiny_opt.path, " ".join(TEXTS), stride or 64, 64)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert (result.protocol, result.seqlen, result.stride) == ("paper", 64, stride or 64)
    assert result.tokens == result.text_tokens - 1 - (result.windows - 1 if stride is None else 0)
    assert "40 texts joined by spaces" in result.sentence()
    assert run("lambada_text", tiny_opt, data=lines, protocol="gptq").protocol == "gptq"


def test_last_words_are_measured_as_the_harness_does(tiny_opt: LoadedModel, lines: Path) -> None:
    result = run("lambada_word", tiny_opt, data=lines)
    assert isinstance(result, LastWordResult)
    accuracy, expected, logits = last_words(tiny_opt.path, TEXTS)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert result.accuracy == accuracy
    assert (result.examples, result.tokens) == (40, sum(len(word) for word in logits))
    assert result.tokens > 40  # some words are of several tokens
    assert list(result.metrics) == ["accuracy", "perplexity"]
    assert run("lambada_word", tiny_opt, data=lines, limit=7).perplexity == pytest.approx(
        last_words(tiny_opt.path, TEXTS[:7])[1], rel=1e-5
    )


def test_the_batch_changes_nothing(tiny_opt: LoadedModel, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for budget in (1, 100, 4096):
        monkeypatch.setattr(losses, "BATCH_TOKENS", {"cpu": budget})
        found.append(run("lambada_word", tiny_opt, data=lines).perplexity)
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_texts_longer_than_the_model_lose_their_beginning(tiny_opt: LoadedModel, lines: Path) -> None:
    result = run("lambada_word", tiny_opt, data=lines, seqlen=10)
    model, tokenizer = tiny_opt.model, tiny_opt.tokenizer
    likelihoods, shortened = [], 0
    for text in TEXTS:
        whole = tokenizer(text)["input_ids"]
        count = len(whole) - len(tokenizer(text.rpartition(" ")[0])["input_ids"])
        shortened += len(whole) > 11
        with torch.no_grad():
            logits = model(torch.tensor([whole[-11:-1]])).logits[0, -count:].log_softmax(dim=-1)
        likelihoods.append(logits[range(count), whole[-count:]].sum().item())
    assert result.perplexity == pytest.approx(math.exp(-sum(likelihoods) / 40), rel=1e-5)
    assert result.shortened == shortened > 0
    assert f"{shortened} cut to 10 tokens" in result.sentence()


def changed(original: LoadedModel, folder: Path) -> LoadedModel:
    """A model a little off the original."""
    model = transformers.AutoModelForCausalLM.from_pretrained(original.path)
    generator = torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    original.tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu")


def test_last_words_against_the_original(tiny_opt: LoadedModel, lines: Path, tmp_path: Path) -> None:
    other = changed(tiny_opt, tmp_path)
    result = run("lambada_word", other, tiny_opt, data=lines)
    against = result.against
    ours, theirs = last_words(tmp_path, TEXTS), last_words(tiny_opt.path, TEXTS)
    assert result.perplexity == pytest.approx(ours[1], rel=1e-5)
    assert against.metrics == pytest.approx({"accuracy": theirs[0], "perplexity": theirs[1]}, rel=1e-5)
    assert against.differences["perplexity"].value == pytest.approx(ours[1] - theirs[1], rel=1e-3)
    p, q = (torch.cat(side[2]).softmax(dim=1).numpy() for side in (theirs, ours))
    assert against.kl_divergence.value == pytest.approx(scipy.stats.entropy(p, q, axis=1).mean(), rel=1e-4)
    assert against.agreement == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    assert against.paired_over == "examples"


def test_every_kind_of_file_gives_the_same_texts(lines: Path, tmp_path: Path) -> None:
    plain, zipped = tmp_path / "lambada_test_plain_text.txt", tmp_path / "rows.json.gz"
    plain.write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    zipped.write_bytes(gzip.compress(lines.read_bytes()))
    hashes = {TASKS["lambada_word"].read(EvalOptions(data=p)).sha256 for p in (lines, lines.parent, plain, zipped)}
    assert len(hashes) == 1
    assert TASKS["lambada_text"].read(EvalOptions(data=tmp_path)).content == " ".join(TEXTS)


def test_the_hub_is_asked_for_the_texts_that_each_protocol_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: str, **options: str) -> dict[str, list[str]]:
        asked.append((*args, options["split"]))
        return {"text": TEXTS}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert TASKS["lambada_text"].read(EvalOptions()).content == " ".join(TEXTS)
    assert TASKS["lambada_word"].read(EvalOptions()).texts == tuple(TEXTS)
    assert asked == [("cimec/lambada", "plain_text", "test"), ("EleutherAI/lambada_openai", "default", "test")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no text: give a file with one text a line"),
        ('{"text": "ka shin"}\n{"sentence": "lo"}\n', "line 2 is not a JSON object with a text under 'text'"),
        ("ka shin\n", "line 1 is not a JSON object"),
        ('{"text": 3}\n', "line 1 is not"),
    ],
)
def test_files_that_are_no_texts(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(KQuantError, match=says):
        TASKS["lambada_word"].read(EvalOptions(data=path))


def test_other_bad_input(tiny_opt: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KQuantError, match=r"holds no LAMBADA: expected lambada_test.jsonl or lambada_test_plain_text"):
        TASKS["lambada_word"].read(EvalOptions(data=tmp_path))
    broken = tmp_path / "rows.json.gz"
    broken.write_bytes(gzip.compress(b'{"text": "ka shin"}\n' * 99)[:-9])
    with pytest.raises(KQuantError, match="is not a whole gzip file"):
        TASKS["lambada_text"].read(EvalOptions(data=broken))
    single = tmp_path / "single.txt"
    single.write_text("ka shin\nlo\n", encoding="utf-8")
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": "ka shin"}\n{"text": " "}\n', encoding="utf-8")
    with pytest.raises(KQuantError, match=r"text 2 \(' '\) is empty"):
        run("lambada_word", tiny_opt, data=empty)
    with pytest.raises(KQuantError, match="--limit 0 leaves no text"):
        run("lambada_word", tiny_opt, data=single, limit=0)
    with pytest.raises(KQuantError, match="--seqlen 65 is longer than the model's maximum of 64"):
        run("lambada_word", tiny_opt, data=single, limit=1, seqlen=65)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(KQuantError, match=r"get lambada_test\.jsonl or .* pass it as --data lambada_test\.jsonl"):
        TASKS["lambada_word"].read(EvalOptions())


def test_real_texts_on_a_trained_model(shared: Callable[[str], Path]) -> None:
    loaded = load_model(shared("models/TinyStories-656K"), device="cpu")
    options = EvalOptions(data=shared("data/lambada"), limit=25)
    rows = TASKS["lambada_word"].read(options)
    assert len(rows.texts) == 5153
    result = TASKS["lambada_word"].run(loaded, rows, options)
    accuracy, expected, _ = last_words(loaded.path, list(rows.texts[:25]))
    assert result.perplexity == pytest.approx(expected, rel=1e-4)
    assert result.accuracy == accuracy
    text = TASKS["lambada_text"].read(EvalOptions(data=shared("data/lambada/lambada_test.jsonl")))
    short = type(text)(text.content[:9000], "the beginning")
    found = perplexity(loaded, short, EvalOptions(protocol="paper", stride=128, seqlen=512)).perplexity
    assert found == pytest.approx(papers_loop(loaded.path, short.content, 128, 512), rel=1e-5)

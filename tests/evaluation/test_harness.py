"""Tasks of lm-evaluation-harness on local data, against transformers alone."""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from kquant_cli import demo
from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import TASKS, EvalOptions, select_tasks
from kquant_cli.evaluation.harness import HarnessResult
from kquant_cli.evaluation.tasks.lm_eval import harness_task
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model

KQuant = Callable[..., Any]

# Made up for this test: a beginning, three ways to go on, and which is right.
QUESTIONS = (
    ("The old clock on the wall", ("struck nine.", "of the and were.", "butter quickly is."), 0),
    ("She opened the door and", ("green the sideways.", "went out into the garden.", "spoons."), 1),
    ("The sea was calm, and the ship", ("of.", "sandwich under yes.", "came slowly into the harbour."), 2),
    ("He sat down at the table and", ("ate his supper.", "the the the.", "purple was not of him and than."), 0),
    ("In the morning", ("the.", "they set out upon the road to the city.", "which of to."), 1),
    ("There was once a king who", ("had three sons.", "Tuesday.", "had."), 0),
    ("It was so dark that", ("it.", "he could see nothing at all.", "dark that so was."), 1),
    ("The letter", ("him of the a.", "had not yet come.", "lettered in letter."), 1),
    ("Snow", ("fell.", "is in and.", "wherefore the rails."), 0),
)
TASK = """
task: {name}
tag: kquant_tag
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{beginning}}}}"
{target}
metadata: {{version: 3.0}}
"""
CHOICE = """doc_to_choice: endings
doc_to_target: right
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: brier_score}]
"""
ROLLING = 'doc_to_target: "{{beginning}} {{endings[right]}}"\nmetric_list: [{metric: bits_per_byte}]'
# As the harness's lambada_openai, but for the mean log-likelihood in place of its exponential.
LAST_WORDS = """
task: kquant_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list: [{{metric: perplexity, aggregation: mean}}, {{metric: acc, aggregation: mean}}]
"""
WORDS = ("Snow", *(f"{beginning} {endings[right]}" for beginning, endings, right in QUESTIONS), " bread")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three task files of our own on one local file."""
    pytest.importorskip("lm_eval", reason="lm-eval is an optional extra")
    root = tmp_path_factory.mktemp("harness") / "tasks"
    root.mkdir()
    rows = [{"beginning": beginning, "endings": endings, "right": right} for beginning, endings, right in QUESTIONS]
    file = root / "rows.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, kind, target, data in (
        ("kquant_endings", "multiple_choice", CHOICE, file),
        ("kquant_texts", "loglikelihood_rolling", ROLLING, file),
        ("kquant_lost", "multiple_choice", CHOICE, root / "absent.json"),
    ):
        task = TASK.format(name=name, kind=kind, target=target, file=data)
        (root / f"{name}.yaml").write_text(task.replace("tag: kquant_tag\n", "") if data != file else task)
    words = root / "words.jsonl"
    words.write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS), encoding="utf-8")
    (root / "kquant_words.yaml").write_text(LAST_WORDS.format(file=words))
    return root


@pytest.fixture(scope="session")
def embedded() -> LoadedModel:
    return load_model(demo.demo_model_path(), device="cpu")


def run(name: str, loaded: LoadedModel, against: LoadedModel | None = None, **options: Any) -> HarnessResult:
    chosen = EvalOptions(**options)
    task = harness_task(name)
    result = task.run(loaded, task.read(chosen), chosen, against=against)
    assert isinstance(result, HarnessResult)
    return result


def log_likelihood(model: Any, tokens: list[int], count: int) -> float:
    """The sum of the log-probabilities of the last `count` tokens."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, -count - 1 : -1].double().log_softmax(dim=-1)
    return float(logits[range(count), tokens[-count:]].sum())


def choices(path: str | Path, count: int = len(QUESTIONS)) -> np.ndarray:
    """Whether the likeliest ending, and the likeliest per character, is right, and the Brier score (questions, 3)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    found = []
    for beginning, endings, right in QUESTIONS[:count]:
        start = len(tokenizer(beginning)["input_ids"])
        whole = [tokenizer(f"{beginning} {ending}")["input_ids"] for ending in endings]
        scores = np.array([log_likelihood(model, tokens, len(tokens) - start) for tokens in whole])
        lengths = np.array([len(ending) for ending in endings])
        likelihoods = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        brier = ((likelihoods - np.eye(3)[right]) ** 2).sum()
        found.append((scores.argmax() == right, (scores / lengths).argmax() == right, brier))
    return np.array(found, dtype=float)


@pytest.mark.parametrize("limit", [None, 4])
def test_accuracy_is_that_of_plain_transformers(embedded: LoadedModel, folder: Path, limit: int | None) -> None:
    result = run("kquant_endings", embedded, data=folder, limit=limit)
    expected = choices(embedded.path, limit or len(QUESTIONS))
    names = ("acc", "acc_norm", "brier_score")
    assert result.metrics == pytest.approx(dict(zip(names, expected.mean(axis=0), strict=True)), rel=1e-5)
    assert 0 < result.metrics["acc"] < 1  # so that right and wrong endings both count
    errors = expected.std(axis=0, ddof=1) / len(expected) ** 0.5
    assert result.standard_errors["acc"] == pytest.approx(errors[0])
    assert result.standard_errors["acc_norm"] == pytest.approx(errors[1])
    assert result.counts == {"examples": len(expected)}
    assert (result.task, result.task_versions) == ("lm_eval:kquant_endings", {"kquant_endings": 3.0})
    assert result.num_fewshot == {"kquant_endings": 0}
    assert result.data == f'json {{"test": "{folder / "rows.json"}"}} test'
    sentence = result.sentence()
    assert f"lm-evaluation-harness {result.versions['lm_eval']}, task version 3.0, 0-shot" in sentence
    assert ("(--limit)" in sentence) == (limit is not None)


def test_texts_longer_than_the_model_go_in_windows(tiny_opt: LoadedModel, folder: Path) -> None:
    result = run("kquant_texts", tiny_opt, data=folder, seqlen=9)
    total = 0.0
    texts = [f"{beginning} {endings[right]}" for beginning, endings, right in QUESTIONS]
    for text in texts:
        tokens = tiny_opt.tokenizer(text)["input_ids"]  # the harness predicts the first </s> too, from another
        start = tiny_opt.tokenizer.bos_token_id
        first = tokens[:9]
        total += log_likelihood(tiny_opt.model, [start, *first], len(first))
        for begin in range(9, len(tokens), 9):
            new = tokens[begin : begin + 9]
            total += log_likelihood(tiny_opt.model, tokens[max(0, begin + len(new) - 10) : begin + len(new)], len(new))
    size = sum(len(text.encode()) for text in texts)
    assert result.metrics["bits_per_byte"] == pytest.approx(-total / size / np.log(2), rel=1e-5)


def test_our_last_words_are_the_harnesss(embedded: LoadedModel, folder: Path) -> None:
    theirs = run("kquant_words", embedded, data=folder).metrics
    options = EvalOptions(data=folder / "words.jsonl")
    ours = TASKS["lambada_word"].run(embedded, TASKS["lambada_word"].read(options), options).metrics
    assert np.log(ours["perplexity"]) == pytest.approx(-theirs["perplexity"], rel=1e-5)
    assert ours["accuracy"] == theirs["acc"]


def test_a_tag_has_the_numbers_of_its_members(tiny_opt: LoadedModel, folder: Path) -> None:
    result = run("kquant_tag", tiny_opt, data=folder)
    single = run("kquant_endings", tiny_opt, data=folder)
    assert result.metrics["kquant_endings acc"] == single.metrics["acc"]
    assert set(result.metrics) == {
        "kquant_endings acc", "kquant_endings acc_norm", "kquant_endings brier_score", "kquant_texts bits_per_byte"
    }  # fmt: skip
    assert result.counts == {"examples": 2 * len(QUESTIONS)}
    assert result.data_sha256 != single.data_sha256


def test_against_pairs_the_examples(embedded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded.path)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.5 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path)
    embedded.tokenizer.save_pretrained(tmp_path)
    changed = load_model(tmp_path, device="cpu")
    result = run("kquant_endings", changed, against=embedded, data=folder)
    ours, theirs = choices(tmp_path), choices(embedded.path)
    difference = ours - theirs
    assert np.abs(difference[:, 0]).sum() > 0
    assert result.against is not None
    assert result.against.metrics["acc"] == pytest.approx(theirs[:, 0].mean())
    found = result.against.differences["acc"]
    assert found.value == pytest.approx(difference[:, 0].mean())
    assert found.standard_error == pytest.approx(difference[:, 0].std(ddof=1) / len(difference) ** 0.5)
    assert result.metrics["acc"] == pytest.approx(ours[:, 0].mean())


def test_a_bundle_keeps_the_result(kquant: KQuant, tiny_opt: LoadedModel, folder: Path, tmp_path: Path) -> None:
    bundle, written = tmp_path / "bundle", tmp_path / "out.json"
    assert kquant("compress", tiny_opt.path, "--encoder", "uniform", "--bits", 4, "-o", bundle).code == 0
    task = "text,lm_eval:kquant_endings"
    (folder / "prose.txt").write_text("not for this", encoding="utf-8")
    run = kquant("eval", bundle, "--task", "lm_eval:kquant_endings", "--data", folder, "--json", written)
    assert run.code == 0, run.err
    (entry,) = json.loads(written.read_text())["results"]
    assert f"{entry['metrics']['acc']:.4f} ± {entry['standard_errors']['acc']:.4f}" in run.out
    (file,) = (bundle / "results").glob("*.json")
    assert file.name.startswith("lm_eval_kquant_endings-lm-evaluation-harness-")
    assert json.loads(file.read_text())["metrics"] == entry["metrics"]
    assert "lm_eval:kquant_endings" in kquant("inspect", bundle).out
    mixed = kquant("eval", bundle, "--task", task, "--data", folder)
    assert mixed.code == 2  # one --data cannot be both a text and a folder of task files


def test_names_after_the_prefix_are_the_harnesss() -> None:
    assert list(select_tasks("demo, rte,lm_eval:hellaswag, piqa", EvalOptions())) == [
        "demo", "rte", "lm_eval:hellaswag", "lm_eval:piqa"
    ]  # fmt: skip
    assert list(select_tasks("lm_eval:cola,lm_eval:piqa", EvalOptions())) == ["lm_eval:cola", "lm_eval:piqa"]
    for names in ("lm_eval:", "demo,lm_eval: ,"):
        with pytest.raises(KQuantError, match="names nothing after 'lm_eval:'"):
            select_tasks(names, EvalOptions())
    with pytest.raises(KQuantError, match="--stride means nothing to task 'lm_eval:piqa'"):
        select_tasks("lm_eval:piqa", EvalOptions(stride=3))


def test_what_the_harness_does_not_have(folder: Path) -> None:
    with pytest.raises(KQuantError, match=r"'kquant_ending' is not known .* did you mean kquant_endings"):
        harness_task("kquant_ending").read(EvalOptions(data=folder))
    with pytest.raises(KQuantError, match=r"did you mean hellaswag"):
        harness_task("helaswag").read(EvalOptions(data=folder))
    with pytest.raises(KQuantError, match=r"cannot make its task 'kquant_lost' .*see to the data that its file names"):
        harness_task("kquant_lost").read(EvalOptions(data=folder))
    with pytest.raises(KQuantError, match=r"rows.json is no folder"):
        harness_task("kquant_endings").read(EvalOptions(data=folder / "rows.json"))
    with pytest.raises(KQuantError, match=r"--limit 0 leaves no example"):
        harness_task("kquant_endings").read(EvalOptions(data=folder, limit=0))


def test_data_that_cannot_be_had_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    with pytest.raises(KQuantError, match=r"data of 'lm_eval:piqa' are neither in the cache nor .*\(baber/piqa"):
        harness_task("piqa").read(EvalOptions(data=folder))


def offline(*_: object, **__: object) -> None:
    raise OSError("no network")


def test_without_the_package_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, kquant: KQuant) -> None:
    find = sys.modules["importlib.util"].find_spec
    hidden = lambda name, *rest: None if name == "lm_eval" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", hidden)
    run = kquant("eval", demo.demo_model_path(), "--task", "lm_eval:piqa")
    assert run.code == 2
    assert "not installed: pip install lm-eval" in " ".join(run.err.split())


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not here, so the imports above have shown it")
def test_the_harness_is_imported_only_when_used() -> None:
    import subprocess

    code = "import sys, kquant_cli.evaluation; kquant_cli.evaluation.select_tasks('lm_eval:piqa', "
    code += "kquant_cli.evaluation.EvalOptions()); sys.exit('lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

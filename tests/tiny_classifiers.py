"""Tiny random classifiers with a tokenizer for sentences and pairs, and GLUE's files of sentences of our own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tiny_models
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 300
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]

# Made up for these tests; of different lengths, and with the signs that a file of tab-separated values might mangle.
SENTENCES = (
    "The kettle sings before the water boils.",
    "Nobody remembered where the ladder had been left, least of all the painter.",
    'A "quoted" word stands here.',
    "It rained.",
    "Our neighbour's dog guards the gate with great patience and little success.",
    "Seven boats left the harbour at dawn, and six came back by noon.",
    "Cats dream.",
    "Under the old bridge the river is slow, brown and full of eels.",
    "She mended the clock with a hairpin; it has been fast ever since.",
    "The soup wanted salt, time and another cook.",
    "Letters arrive on Tuesdays.",
    "He counted the stairs twice and found one more on the way down.",
    "What the map called a road turned out to be a row of puddles.",
    "Bread, cheese and an onion: that was dinner.",
    "The choir sang so softly that the candles did not move.",
    "Snow fell on the first of May, which pleased only the children and the man who sells sledges.",
)

# A label for each example of a task, as its official file writes it; two texts an example where the task takes pairs.
LABELS: dict[str, Sequence[str]] = {
    "cola": "1011010111010011",
    "sst2": "0110100110010110",
    "mrpc": "1110101101110101",
    "qqp": "0010110100100101",
    "stsb": [
        "0.000",
        "3.800",
        "2.333",
        "5.000",
        "1.250",
        "4.750",
        "3.400",
        "0.500",
        "2.000",
        "2.600",
        "4.200",
        "1.714",
        "3.000",
        "4.000",
        "0.250",
        "2.750",
    ],
    "mnli": ["neutral", "entailment", "contradiction", "entailment"] * 4,
    "qnli": ["entailment", "not_entailment", "not_entailment", "entailment"] * 4,
    "rte": ["not_entailment", "entailment", "entailment", "not_entailment"] * 4,
    "wnli": "0101110010100110",
}
FOLDERS = {
    **{"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "qqp": "QQP", "stsb": "STS-B"},
    **{"mnli": "MNLI", "qnli": "QNLI", "rte": "RTE", "wnli": "WNLI"},
}
# The official files: the header line ("" for none), and a row of label L, texts A and B, number N.
LAYOUTS = {
    "cola": ("", "src1\tL\t\tA"),
    "sst2": ("sentence\tlabel", "A\tL"),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "L\t11\t22\tA\tB"),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "N\t1\t2\tA\tB\tL"),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "N\tg\tf\ty\to\ts\tt\tA\tB\tL",
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "N\tp\tq\tg\tx\tx\tx\tx\tA\tB\tneutral\tL",
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "N\tA\tB\tL"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "N\tA\tB\tL"),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "N\tA\tB\tL"),
}


def examples(task: str, shift: int = 3) -> list[tuple[str, str, str]]:
    """(first text, second text, label) of each example; the second is of no account where a task takes one."""
    count = len(SENTENCES)
    return [(SENTENCES[i], SENTENCES[(i * 5 + shift) % count], LABELS[task][i]) for i in range(count)]


def write_tsv(task: str, root: Path) -> Path:
    """Write the task's official validation file, or MNLI's two, under `root`; returns `root`."""
    header, row = LAYOUTS[task]
    folder = root / FOLDERS[task]
    folder.mkdir(parents=True, exist_ok=True)
    for file, shift in (("dev_matched", 3), ("dev_mismatched", 7)) if task == "mnli" else (("dev", 3),):
        lines = [header] if header else []
        for number, (first, second, label) in enumerate(examples(task, shift)):
            values = {"A": first, "B": second, "L": label, "N": str(number)}
            lines.append("\t".join(values.get(field, field) for field in row.split("\t")))
        (folder / f"{file}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@cache
def trained_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer trained on SENTENCES that sets texts and pairs as BERT's does.

    Trained once, for the trainer breaks ties as it likes.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]"))],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_tokenizer(folder: Path) -> None:
    """Put the tokenizer beside the weights in `folder`."""
    trained_tokenizer().save_pretrained(folder)


def make(folder: Path, arch: str = "bert_classifier", **overrides: Any) -> Path:
    """Save the tiny random classifier of `arch` with the tokenizer beside it.

    Its head's bias makes the outputs zero on average over SENTENCES, so that every label is predicted now and then.
    """
    model = tiny_models.build(arch, **{"vocab_size": VOCABULARY, **overrides})
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    inputs = trained_tokenizer()(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        known = {key: value for key, value in inputs.items() if key != "token_type_ids"}
        head.bias -= model(**known).logits.mean(dim=0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder

#!/usr/bin/env python3
"""Fine-tune an encoder on a GLUE task: a plain torch loop, so that there are classifiers to compress and evaluate.

    python scripts/finetune_glue.py MINILM_FOLDER --task sst2 --data GLUE_FOLDER -o classifiers/sst2

AdamW (weight decay on matrices alone), a linear warm-up and then a linear decay to zero, gradients clipped to norm 1,
dropout as the encoder's config says; the last weights are kept, whatever the validation examples say of them. The
folder is an ordinary checkpoint whose config names the labels; finetune.json beside the weights says how it was made.
The same seed, data, device and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from results import machine
from torch.nn import functional

from kquant_cli.devices import resolve_device
from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import EvalOptions
from kquant_cli.evaluation.classification import Examples, Spec, classify, read_examples
from kquant_cli.evaluation.classification.outputs import longest_example
from kquant_cli.evaluation.tasks.glue import SPECS
from kquant_cli.hf.loading import LoadedModel

BATCHES_SORTED = 50  # so many batches of shuffled examples are sorted by length, and then shuffled as batches


def new_classifier(encoder: str, spec: Spec, device: torch.device) -> transformers.PreTrainedModel:
    """The encoder with a new head for the task, its outputs named in the task's order."""
    head: dict[str, Any] = {"num_labels": spec.outputs}
    if spec.labels:
        names = dict(enumerate(spec.labels))
        head |= {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(encoder, dtype=torch.float32, **head).to(device)


def batches(lengths: list[int], size: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch's batches of indexes, in random order and of examples of like length."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    chunk, found = size * BATCHES_SORTED, []
    for begin in range(0, len(order), chunk):
        alike = sorted(order[begin : begin + chunk], key=lambda index: lengths[index])
        found += [alike[i : i + size] for i in range(0, len(alike), size)]
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]


def parameter_groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for biases and norms."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def loss_of(logits: torch.Tensor, labels: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Cross-entropy of labels, or the squared error of scores; logits (batch, outputs), labels (batch,)."""
    if spec.labels:
        return functional.cross_entropy(logits, labels.long())
    return functional.mse_loss(logits[:, 0], labels.float())


def train(loaded: LoadedModel, examples: Examples, spec: Spec, args: argparse.Namespace) -> Iterator[float]:
    """Train in place; yields each epoch's mean loss."""
    model, tokenizer = loaded.model, loaded.tokenizer
    columns = [list(column) for column in zip(*examples.texts, strict=True)]
    length = longest_example(loaded, args.max_length)
    encoded = tokenizer(*columns, truncation=True, max_length=length, verbose=False)
    lengths = [len(row) for row in encoded["input_ids"]]
    labels = torch.tensor(examples.labels)
    generator = torch.Generator().manual_seed(args.seed)
    epochs = [batches(lengths, args.batch_size, generator) for _ in range(args.epochs)]
    steps = sum(len(epoch) for epoch in epochs)
    optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.lr)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(args.warmup * steps), steps)
    began, done = time.perf_counter(), 0
    model.train()
    for epoch in epochs:
        losses = []
        for batch in epoch:
            inputs = tokenizer.pad({key: [encoded[key][i] for i in batch] for key in encoded}, return_tensors="pt")
            logits = model(**inputs.to(model.device)).logits
            loss = loss_of(logits, labels[batch].to(model.device), spec)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item() * len(batch))
            done += 1
            if done % args.log_every == 0:
                left = (time.perf_counter() - began) / done * (steps - done)
                print(f"step {done} of {steps}, loss {loss.item():.4f}, {left:.0f} s left", flush=True)
        yield sum(losses) / len(lengths)


def finetune(args: argparse.Namespace) -> None:
    """Train, measure after every epoch, and save."""
    spec = next(spec for spec in SPECS if spec.name == args.task)
    examples = read_examples(spec, args.data, "train").first(args.limit)
    parts = {ending: read_examples(spec, args.data, split) for ending, split in spec.splits}
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    model = new_classifier(args.encoder, spec, resolve_device(args.device))
    loaded = LoadedModel(model, "dense", args.encoder)
    began, epochs = time.perf_counter(), []
    for number, loss in enumerate(train(loaded, examples, spec, args), start=1):
        model.eval()
        result = classify(loaded, parts, EvalOptions(seqlen=args.max_length, limit=args.eval_limit), spec)
        epochs.append({"loss": loss, **result.metrics})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        print(f"epoch {number}: loss {loss:.4f}, {shown}", flush=True)
        model.train()
    model.eval().save_pretrained(args.output)
    loaded.tokenizer.save_pretrained(args.output)
    facts = {
        **{key: value for key, value in vars(args).items() if key not in ("output", "log_every", "data", "encoder")},
        "encoder": Path(args.encoder).name,
        "examples": len(examples.texts),
        "train_sha256": examples.sha256,
        "epochs_done": epochs,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
    }
    (args.output / "finetune.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def options() -> argparse.ArgumentParser:
    """The command line, for scripts/train_demo_classifier.py too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="folder or hub id of an encoder that transformers knows")
    parser.add_argument("--task", required=True, choices=[spec.name for spec in SPECS])
    parser.add_argument(
        "--data", type=Path, help="folder with the official TSV files; without it, the hub's nyu-mll/glue"
    )
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, help="tokens of an example; default 128, as run_glue")
    parser.add_argument("--warmup", type=float, default=0.06, help="share of the steps")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--limit", type=int, help="only the first so many training examples")
    parser.add_argument("--eval-limit", type=int, help="only the first so many validation examples")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--log-every", type=int, default=100, help="steps")
    return parser


def main() -> None:
    args = options().parse_args()
    try:
        finetune(args)
    except KQuantError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

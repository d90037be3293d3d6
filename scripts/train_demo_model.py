#!/usr/bin/env python3
"""Train the language model that the package embeds, from plain text files, and write it as a Hugging Face folder.

    python scripts/train_demo_model.py OUT_DIR --heldout-tail VALID.raw TRAIN.txt [TRAIN.txt ...]

A byte-level BPE tokenizer and an OPT model (`OPTForCausalLM`) are trained on the given files and on all but the last
tenth of the `--heldout-tail` file; that last tenth is the held-out text. The run is seeded and resumable: the state is
saved at every evaluation under OUT_DIR/.training, and the same command goes on from there. The learning rate is held,
then falls linearly to zero over the last 30% of the steps; the weights with the lowest held-out loss are kept.
OUT_DIR then has the float16 weights, the tokenizer, and README.md: files with their SHA-256, steps and losses.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

VOCABULARY, WINDOW = 4096, 256
SHAPE = {"hidden_size": 256, "ffn_dim": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}


def split_texts(train: list[Path], tail: Path) -> tuple[list[str], str]:
    """The training texts and the held-out text (the last tenth of `tail`, cut at a line end)."""
    whole = tail.read_text(encoding="utf-8")
    cut = whole.index("\n", len(whole) * 9 // 10) + 1
    return [path.read_text(encoding="utf-8") for path in train] + [whole[:cut]], whole[cut:]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with OPT's special tokens: <s> 0 (unused), <pad> 1, </s> 2 (starts every text)."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """Token ids (tokens,) of one text; line by line, so that memory stays small."""
    lines = tokenizer.backend_tokenizer.encode_batch(text.splitlines(keepends=True), add_special_tokens=False)
    return torch.tensor([2] + [i for line in lines for i in line.ids])


@torch.no_grad()
def heldout_loss(model: OPTForCausalLM, ids: torch.Tensor, batch: int = 32) -> float:
    """Mean negative log-likelihood (nats a token) over non-overlapping windows."""
    model.eval()
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    total = sum(model(input_ids=part, labels=part).loss.item() * len(part) for part in windows.split(batch))
    model.train()
    return total / len(windows)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps, constant, then linear to zero over the last 30%."""
    return peak * min(1.0, (step + 1) / 200, (steps - step) / (0.3 * steps))


def save(out: Path, model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, best: dict) -> None:
    """Write the best weights in float16 with tokenizer and configuration."""
    model.load_state_dict(best)
    model.eval().to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def card(out: Path, files: dict[str, str], facts: dict) -> None:
    """Write README.md of the model folder."""
    rows = "\n".join(f"| {name} | `{digest}` |" for name, digest in files.items())
    every = max(1, len(facts["log"]) // 12)
    shown = [entry for i, entry in enumerate(facts["log"], start=1) if i % every == 0 or i == len(facts["log"])]
    losses = "\n".join(f"| {step} | {math.exp(mean):.2f} | {math.exp(held):.2f} |" for step, mean, held in shown)
    (out / "README.md").write_text(
        f"""# kquant's demo model

An OPT language model of {facts["parameters"]:,} parameters, trained by `scripts/train_demo_model.py` for kquant's demo
and tests (licence: Apache-2.0, as the package). It is for measuring compression; it knows too little to be of use.

Vocabulary {VOCABULARY} (byte-level BPE), window {WINDOW}, {SHAPE}.
Seed {facts["seed"]}, {facts["steps"]} steps of {facts["batch"]} windows ({facts["epochs"]:.1f} passes over
{facts["train_tokens"]:,} tokens), AdamW, peak learning rate {facts["lr"]}, dropout {facts["dropout"]}.

Held-out text: the last tenth of `{facts["tail"]}` ({facts["heldout_tokens"]:,} tokens), non-overlapping windows of
{WINDOW}. **Perplexity there: {math.exp(facts["best"]):.2f}**. During training (train: batches with dropout):

| step | train | held-out |
|---|---|---|
{losses}

| trained on | SHA-256 |
|---|---|
{rows}
""",
        encoding="utf-8",
    )


def make_model(dropout: float) -> OPTForCausalLM:
    """The untrained model."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=WINDOW,
        word_embed_proj_dim=SHAPE["hidden_size"],
        dropout=dropout,
        attention_dropout=0.0,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
        **SHAPE,
    )
    return OPTForCausalLM(config)


def make_optimiser(model: OPTForCausalLM, lr: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def train(
    model: OPTForCausalLM, ids: torch.Tensor, held: torch.Tensor, state_file: Path, args: argparse.Namespace
) -> dict:
    """Train to `args.steps`, from the saved state if there is one; the state at the end, best weights and log in it."""
    optimiser = make_optimiser(model, args.lr)
    state: dict = {"step": 0, "log": [], "best_loss": math.inf, "best": None}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        print(f"resumed at step {state['step']}")
    model.train()
    start, began, running = state["step"], time.time(), []
    for step in range(start, args.steps):
        picks = torch.Generator().manual_seed(args.seed * 1_000_003 + step)  # the same windows after a resume
        torch.manual_seed(args.seed * 1_000_003 + step)
        offsets = torch.randint(len(ids) - WINDOW, (args.batch,), generator=picks)
        batch = torch.stack([ids[o : o + WINDOW] for o in offsets])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        running.append(loss.item())
        if (step + 1) % args.evaluate_every == 0 or step + 1 == args.steps:
            held_loss, mean = heldout_loss(model, held), sum(running) / len(running)
            pace = (step + 1 - start) * args.batch * WINDOW / (time.time() - began)
            print(
                f"step {step + 1}/{args.steps}  train {math.exp(mean):.2f}  held-out {math.exp(held_loss):.2f}", end=""
            )
            print(f"  {pace:.0f} tokens/s", flush=True)
            running = []
            state["step"], state["log"] = step + 1, [*state["log"], [step + 1, mean, held_loss]]
            if held_loss < state["best_loss"]:
                state["best_loss"], state["best"] = held_loss, {k: v.clone() for k, v in model.state_dict().items()}
            state |= {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(state, state_file.with_suffix(".part"))
            state_file.with_suffix(".part").replace(state_file)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("train", type=Path, nargs="+")
    parser.add_argument("--heldout-tail", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    texts, heldout = split_texts(args.train, args.heldout_tail)
    state_dir = args.out / ".training"
    state_dir.mkdir(parents=True, exist_ok=True)
    if (state_dir / "tokenizer").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(state_dir / "tokenizer")
    else:
        tokenizer = train_tokenizer(texts)
        tokenizer.save_pretrained(state_dir / "tokenizer")
    ids = torch.cat([encode(tokenizer, text) for text in texts])
    held = encode(tokenizer, heldout)
    model = make_model(args.dropout)
    state = train(model, ids, held, state_dir / "state.pt", args)

    save(args.out, model, tokenizer, state["best"])
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tail": args.heldout_tail.name,
        "heldout_tokens": len(held),
        "train_tokens": len(ids),
        "epochs": args.steps * args.batch * WINDOW / len(ids),
        "best": state["best_loss"],
        "log": state["log"],
        **{k: getattr(args, k) for k in ("seed", "steps", "batch", "lr", "dropout")},
    }
    card(
        args.out, {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in [*args.train, args.heldout_tail]}, facts
    )


if __name__ == "__main__":
    main()

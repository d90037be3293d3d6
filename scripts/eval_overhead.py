"""Is evaluation as fast as the same forward passes in a bare loop of transformers?

    python scripts/eval_overhead.py [--model MODEL] [--data TEXT] [--windows 16] [--rounds 7] [--json FILE]

Both measure the perplexity of the same windows of the same text with the same loaded model, in batches of the same
size, tokenising included; the bare loop is what one would write by hand: logits, cross entropy, mean. They take turns,
the one that begins changing from round to round, and the ratio of their median times counts. Their perplexities must
agree to 1e-4. A machine with other work to do tells little, least of all with several threads (OMP_NUM_THREADS=1).
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from results import machine, write_results
from torch.nn import functional

from kquant_cli import demo
from kquant_cli.evaluation import EvalOptions, perplexity
from kquant_cli.evaluation.losses import TokenLosses
from kquant_cli.evaluation.texts import Text, text_file
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(demo.demo_model_path()), help="model or bundle; default: the embedded one"
    )
    parser.add_argument("--data", type=Path, help="a text file; default: the embedded text")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seqlen", type=int, help="tokens a window; default: the model's maximum, at most 2048")
    parser.add_argument("--windows", type=int, help="only the first so many windows")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()

    loaded = load_model(options.model, device=options.device, dtype=options.dtype)
    text = text_file(options.data or demo.demo_text_path(), "text")
    asked = EvalOptions(seqlen=options.seqlen, limit=options.windows)
    result = perplexity(loaded, text, asked)  # also the warm-up
    with torch.inference_mode():
        batch = TokenLosses.of(loaded.model).batch_size(result.seqlen)
    bare = bare_perplexity(loaded, text, result.seqlen, result.windows, batch)
    if not math.isclose(bare, result.perplexity, rel_tol=1e-4):
        raise SystemExit(f"the two differ: {bare} in the bare loop, {result.perplexity} by kquant")

    versions: dict[str, Callable[[], object]] = {
        "bare": lambda: bare_perplexity(loaded, text, result.seqlen, result.windows, batch),
        "kquant": lambda: perplexity(loaded, text, asked),
    }
    times: dict[str, list[float]] = {name: [] for name in versions}
    for number in range(options.rounds):
        for name in sorted(versions, reverse=number % 2 == 1):
            times[name].append(timed(versions[name], loaded.device))
        print(f"round {number + 1}: bare {times['bare'][-1]:.2f} s, kquant {times['kquant'][-1]:.2f} s")
    ratio = statistics.median(times["kquant"]) / statistics.median(times["bare"])
    print(f"ratio of the medians: {ratio:.3f}")
    values = {
        "machine": machine(),
        "model": Path(options.model).name,
        "device": loaded.devices,
        "threads": torch.get_num_threads(),
        "dtype": result.dtype,
        "seqlen": result.seqlen,
        "windows": result.windows,
        "batch": batch,
        "perplexity": result.perplexity,
        "seconds": times,
        "ratio": ratio,
    }
    write_results(options.json, values)


def bare_perplexity(loaded: LoadedModel, text: Text, seqlen: int, windows: int, batch: int) -> float:
    """GPTQ's protocol in a plain loop over batches of windows."""
    model, tokens = loaded.model, torch.tensor(loaded.tokenizer(text.content, verbose=False)["input_ids"])
    losses = []
    with torch.inference_mode():
        for part in tokens[: windows * seqlen].view(windows, seqlen).to(loaded.device).split(batch):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
            loss = functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
            losses.append(loss.view(len(part), -1).mean(dim=1))
    return math.exp(torch.cat(losses).mean())


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

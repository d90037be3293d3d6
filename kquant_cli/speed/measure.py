"""One model measured in this process: load time, tokens a second of prefill and decode, memory.

Prefill reads a prompt at once; decode makes one token after the other, each a whole reading of the weights. Tokens are
random: they cost what any tokens do.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kquant_cli.devices import resolve_device
from kquant_cli.errors import KQuantError
from kquant_cli.hf.limits import longest_input
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.hf.quiet import quiet
from kquant_cli.hf.tokens import vocabulary
from kquant_cli.native import make_ready
from kquant_cli.process_memory import resident_set, return_freed_memory
from kquant_cli.runtime import load_model
from kquant_cli.speed.floor import bytes_per_token, memory_bandwidth


@dataclass(frozen=True)
class Workload:
    """What is run: `prompt` tokens at once and then `new` tokens one by one, `repeats` times; medians are kept."""

    prompt: int = 256
    new: int = 32
    repeats: int = 3


@dataclass(frozen=True)
class Measurement:
    """Of one model in one process. Memory in bytes: of the GPU, or the process's resident set on a CPU."""

    load_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    loaded_memory: (
        int | None
    )  # more than before loading, once the model has run (mapped files count then), freed given back
    peak_memory: int | None  # of the whole process
    parameter_bytes: int  # of the model: what its memory should be by arithmetic
    weight_bytes_per_token: int  # that a decoded token must read
    bandwidth: float  # bytes a second that this process could read, measured
    dtype: str
    device: str

    @property
    def floor_tokens_per_second(self) -> float:
        """Tokens a second if a token's time were that of reading its weights at the measured bandwidth."""
        return self.bandwidth / self.weight_bytes_per_token


@quiet()
def measure(path: str, device: str, dtype: str, workload: Workload, revision: str | None = None) -> Measurement:
    """Load the model at `path` and measure it; KQuantError where it cannot run the workload."""
    if resolve_device(device).type == "cpu":
        make_ready()  # compiling is no part of loading
    before = resident_set("now")
    started = time.perf_counter()
    loaded = load_model(path, device=device, dtype=dtype, revision=revision)
    load_seconds = time.perf_counter() - started
    on_gpu = loaded.device.type == "cuda"
    limit = longest_input(loaded.model)
    if limit is not None and workload.prompt + workload.new > limit:
        raise KQuantError(
            f"{path} has a maximum of {limit} tokens, fewer than {workload.prompt} of a prompt and {workload.new} new "
            "ones: give a smaller --prompt-tokens or --new-tokens"
        )
    prefills, decodes = _run(loaded, workload)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident_set("peak")
    gc.collect()
    return_freed_memory()
    after = torch.cuda.memory_allocated(loaded.device) if on_gpu else resident_set("now")
    return Measurement(
        load_seconds=load_seconds,
        prefill_tokens_per_second=workload.prompt / statistics.median(prefills),
        decode_tokens_per_second=1 / statistics.median(decodes),
        loaded_memory=after if on_gpu or after is None or before is None else after - before,
        peak_memory=peak,
        parameter_bytes=sum(p.numel() * p.element_size() for p in loaded.model.parameters()),
        weight_bytes_per_token=bytes_per_token(loaded.model),
        bandwidth=memory_bandwidth(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=torch.cuda.get_device_name(loaded.device) if on_gpu else "cpu",
    )


@torch.inference_mode()
def _run(loaded: LoadedModel, workload: Workload) -> tuple[list[float], list[float]]:
    """Seconds of each prefill, and of each decoded token after it; the first round, which compiles, is not counted."""
    model: Any = loaded.model
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(vocabulary(model), (1, workload.prompt), generator=generator).to(loaded.device)
    prefills, decodes = [], []
    for repeat in range(workload.repeats + 1):
        output, seconds = _timed(partial(model, prompt, use_cache=True, logits_to_keep=1), loaded.device)
        taken = []
        for _ in range(workload.new):
            token = output.logits[:, -1:].argmax(-1)
            cache = output.past_key_values
            step = partial(model, token, past_key_values=cache, use_cache=True)
            output, passed = _timed(step, loaded.device)
            taken.append(passed)
        if repeat:
            prefills.append(seconds)
            decodes += taken
    return prefills, decodes


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What `call` returns, and its seconds, the device's work included."""
    started = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - started

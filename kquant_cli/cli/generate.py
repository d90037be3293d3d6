"""`kquant generate`: text from a bundle, token by token as it is made."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kquant_cli.cli.bundle_argument import bundle_or_newest
from kquant_cli.cli.console import log, printable

if TYPE_CHECKING:
    from kquant_cli.hf.loading import LoadedModel


LONGEST_PROMPT = 10_000_000  # letters that are read of standard input, which may have no end
COOLEST = 1e-6  # logits over a temperature far below this are infinite in float32


def generate(
    bundle: Annotated[
        str | None, typer.Argument(help="A bundle or a dense model; by default the newest under bundles/.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The text to go on from; - reads standard input.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens, or at the model's maximum.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest token; above: drawn, more freely the higher.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws; the same seed gives the same text.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="auto (the source's; for a dense model on a CPU float32), float32, float16, bfloat16."),
    ] = "auto",
) -> None:
    """Write text from a prompt, straight from the codes; the text goes to standard output, the rest to standard error.

    Example: kquant generate bundles/demo-4bit --prompt "The lighthouse" --max-new-tokens 40 --temperature 0.7
    """
    from kquant_cli.hf.quiet import quiet

    _check(max_new_tokens, temperature, seed)
    text = _text(prompt)
    with quiet():
        count, seconds = _write(
            bundle_or_newest(bundle, "writing with"), text, max_new_tokens, temperature, seed, chat, device, dtype
        )
    log.print(f"{count} tokens in {seconds:.1f} s, {count / seconds:.1f} a second", highlight=False)


def _write(
    path: str, text: str, max_new_tokens: int, temperature: float, seed: int, chat: bool, device: str, dtype: str
) -> tuple[int, float]:
    """Write what the model at `path` makes of `text` to standard output: how many tokens, and in how many seconds."""
    import torch
    import transformers

    from kquant_cli.hf.causality import require_causal
    from kquant_cli.hf.generation_config import token_settings
    from kquant_cli.hf.tokens import Decoder
    from kquant_cli.runtime import load_model, running_dtype

    loaded = load_model(path, device=device, dtype=running_dtype(path, device, dtype))
    if loaded.decoded:
        log.print(f"{path} is decoded before it runs: {loaded.decoded}", highlight=False, markup=False)
    require_causal(path, loaded.model)
    inputs, room = _inputs(loaded, text, chat)
    torch.manual_seed(seed)
    # One beam, whatever the model's own settings, of which only special tokens are taken: several cannot be streamed.
    settings: dict[str, Any] = {"do_sample": temperature > 0, "num_beams": 1}
    settings["max_new_tokens"] = min(max_new_tokens, room)
    settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    model: Any = loaded.model
    own = {"pad_token_id": loaded.tokenizer.eos_token_id or 0} | token_settings(path, model)
    model.generation_config = transformers.GenerationConfig(**own, **settings)

    class Streamer(transformers.TextStreamer):
        """Of text in which no token steers the terminal."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text), stream_end)

    decoder: Any = Decoder(loaded.tokenizer)
    streamer = Streamer(decoder, skip_prompt=chat, skip_special_tokens=True)
    started = time.perf_counter()
    with torch.inference_mode():
        made = model.generate(**inputs, streamer=streamer)
    seconds = time.perf_counter() - started
    return made.shape[1] - inputs["input_ids"].shape[1], seconds


def _text(prompt: str) -> str:
    """The prompt itself, or standard input; KQuantError where it is empty or no text."""
    from kquant_cli.errors import KQuantError

    try:
        text = sys.stdin.read(LONGEST_PROMPT + 1).removesuffix("\n") if prompt == "-" else prompt
        text.encode()  # Python takes bytes that it cannot decode for lone surrogates
    except UnicodeError as error:
        raise KQuantError("--prompt has bytes that are no text in UTF-8: give it in that encoding") from error
    if len(text) > LONGEST_PROMPT:
        raise KQuantError(f"--prompt has more than {LONGEST_PROMPT:,} letters: give a shorter one")
    if not text.strip():
        raise KQuantError("--prompt is empty: give a text to go on from, or - to read one from standard input")
    return text


def _check(max_new_tokens: int, temperature: float, seed: int) -> None:
    from kquant_cli.errors import KQuantError

    if max_new_tokens < 1:
        raise KQuantError(f"--max-new-tokens is {max_new_tokens}: expected 1 or more")
    if not (temperature == 0 or COOLEST <= temperature < float("inf")):
        raise KQuantError(f"--temperature is {temperature:g}: expected 0 or a number from {COOLEST:g} up")
    if not 0 <= seed < 2**63:
        raise KQuantError(f"--seed is {seed}: expected a whole number from 0 to 2^63 - 1")


def _inputs(loaded: LoadedModel, text: str, chat: bool) -> tuple[dict[str, Any], int]:
    """What the model reads of the prompt, on its device, and how many tokens fit behind it.

    KQuantError for a prompt without tokens or with too many, and for a chat with a model that has no template.
    """
    from kquant_cli.errors import KQuantError
    from kquant_cli.hf.chat_template import chat_text
    from kquant_cli.hf.limits import longest_input
    from kquant_cli.hf.tokens import encode, require_known

    tokenizer = loaded.tokenizer
    if not chat:
        inputs = encode(tokenizer, text, return_tensors="pt")
    else:
        begun = chat_text(loaded.path, tokenizer, [{"role": "user", "content": text}])
        inputs = encode(tokenizer, begun, add_special_tokens=False, return_tensors="pt")
    limit = longest_input(loaded.model)
    length = inputs["input_ids"].shape[1]
    require_known(loaded.path, loaded.model, inputs["input_ids"])
    if not length:
        raise KQuantError(f"--prompt has nothing that the tokenizer of {loaded.path} knows: give another text")
    if limit is not None and length >= limit:
        raise KQuantError(
            f"--prompt has {length} tokens, where {loaded.path} reads at most {limit}: give a shorter one"
        )
    known = ("input_ids", "attention_mask")
    inputs = {name: tensor.to(loaded.device) for name, tensor in inputs.items() if name in known}
    return inputs, sys.maxsize if limit is None else limit - length

"""generation_config.json: read within bounds, checked, and only its token ids used.

transformers takes wrong types from it and fails while it generates, or computes without end (a billion sequences). What
`kquant generate` does is said by its options, so of a model's own settings it takes the tokens that begin, end and pad
a text, and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kquant_cli.errors import KQuantError, clipped, shortened
from kquant_cli.files.json_object import read_object
from kquant_cli.hf.failures import first_line

NAME: Final = "generation_config.json"
IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
LARGEST_ID: Final = 2**31 - 1
EXPECTED: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), (int, float)),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "guidance_scale", "max_time"), (int, float)),
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens", "top_k"), (int,)),
    **dict.fromkeys(("num_beams", "num_return_sequences", "no_repeat_ngram_size"), (int,)),
    **dict.fromkeys(("do_sample", "use_cache"), (bool,)),
}
WORDS: Final[Mapping[tuple[type, ...], str]] = {
    (int, float): "a number",
    (int,): "a whole number",
    (bool,): "true or false",
}


def require_generation_config(path: str | Path) -> None:
    """KQuantError where a model folder has a generation_config.json that is none, or that transformers cannot use."""
    file = Path(path) / NAME
    if not file.exists():
        return
    values = read_object(file)
    require_values(values, str(file))
    from transformers import GenerationConfig  # noqa: PLC0415 (seconds to import)

    try:
        GenerationConfig.from_dict(values)
    except Exception as error:  # validation of transformers' own, of every kind
        said = clipped(first_line(error, "it gives no reason"), 200).rstrip(".")
        raise KQuantError(
            f"{file} cannot be used ({type(error).__name__}: {said}): correct it, or take it away"
        ) from error


def require_values(values: Mapping[str, Any], where: str) -> None:
    """KQuantError for a setting of a generation config, such as `where` holds, that is of a wrong type."""
    for name, types in EXPECTED.items():
        value = values.get(name)
        if not (value is None or type(value) in types):
            raise KQuantError(
                f"{where}: {name} is {shortened(value)}, expected {WORDS[types]}: correct it or leave it out"
            )
    for name in IDS:
        value = values.get(name)
        ids = value if isinstance(value, list) else [value]
        if not (value is None or all(type(token) is int and abs(token) <= LARGEST_ID for token in ids)):
            raise KQuantError(
                f"{where}: {name} is {shortened(value)}, expected a token's id: correct it or leave it out"
            )


def token_settings(path: str, model: Any) -> dict[str, Any]:
    """The ids of special tokens that `model`, of the folder `path`, generates with: those of IDS that it has."""
    found = {name: getattr(model.generation_config, name, None) for name in IDS}
    require_values(found, f"{path}: generation config")
    return {name: value for name, value in found.items() if value is not None}

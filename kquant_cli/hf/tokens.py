"""Token ids to run a model on: random ones, or those of a text. Only reading a tokenizer imports transformers.

What a tokenizer's files hold comes from others: `read_tokenizer` bounds them and tries the tokenizer, `encode` is how
texts become ids, and whatever transformers and tokenizers raise is one sentence (`tokenizer_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kquant_cli.errors import KQuantError, clipped
from kquant_cli.files.json_object import MOST_BYTES, read_object
from kquant_cli.files.plain_files import open_plain
from kquant_cli.hf.failures import code_sentence, first_line, is_panic, needs_code
from kquant_cli.hf.quiet import without_panic_messages
from kquant_cli.hf.text_growth import require_little_growth

# What transformers reads of a folder for its tokenizer.
JSON_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
OTHER_FILES: Final = (
    *("vocab.json", "merges.txt", "vocab.txt", "vocab.bpe", "tokenizer.model", "spiece.model", "tiktoken.model"),
    *("sentencepiece.bpe.model", "tekken.json", "chat_template.jinja", "chat_template.json"),
)
SIDES: Final = ("left", "right")
TRIED: Final = "a b"


class NoTokenizerError(KQuantError):
    """There is no tokenizer, where one that is damaged is another error."""


def vocabulary(model: Any) -> int:
    """How many tokens the model has embeddings for."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def require_known(path: str, model: Any, ids: Tensor) -> None:
    """Raise KQuantError where a token of `ids`, given by the tokenizer of `path`, is beyond the model's embeddings."""
    known = vocabulary(model)
    if ids.numel() and int(ids.max()) >= known:
        raise KQuantError(
            f"the tokenizer of {path} gives token {int(ids.max())}, but the model's vocabulary has "
            f"{known} tokens: the tokenizer belongs to another model"
        )


def ordinary_ids(config: Any, size: int) -> Tensor:
    """The ids below `size` that a transformers config does not call special; all, if it calls all so.

    Special ones (padding, ends, images) mean more than a word.
    """
    special = [number for number in _special(config.to_dict()) if 0 <= number < size]
    ordinary = torch.ones(size, dtype=torch.bool)
    ordinary[special] = False
    return ordinary.nonzero().flatten() if ordinary.any() else torch.arange(size)


def _special(config: Mapping[str, Any]) -> Iterator[int]:
    """The ids under names such as `eos_token_id` or `image_token_index`, in parts of the config too."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _special(value)
        elif "_token_i" in str(name):
            yield from (number for number in (value if isinstance(value, list) else [value]) if type(number) is int)


def random_ids(config: Any, size: int, count: int, draw: Callable[[int, int], Any]) -> Tensor:
    """Ids (count,) of the ordinary ones below `size`; `draw(n, count)` gives their places, (count,) from 0 to n - 1."""
    candidates = ordinary_ids(config, size)
    return candidates[torch.as_tensor(draw(len(candidates), count))]


def read_tokenizer(path: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a model folder, or of a model on the hub, tried on a few letters.

    Raises
    ------
    NoTokenizerError
        There is none, or one that knows special tokens alone, as some architectures give where there are no files.
    KQuantError
        Its files are too large, no plain files, or hold what transformers cannot use; or it needs code of its own.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 (seconds to import)

    found = _bounded_files(Path(path))
    with tokenizer_of(path, found), without_panic_messages():
        tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        if not set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            _try(tokenizer)
            return tokenizer
    raise NoTokenizerError(_none(path))


@contextmanager
def tokenizer_of(path: str | Path, files: tuple[str, ...] | None = None) -> Iterator[None]:
    """Within it, whatever transformers and tokenizers raise (panics of Rust too) is a KQuantError about `path`.

    `files`: while it is being read, the files of its folder that it is read from; none of them means there is none.
    """
    try:
        yield
    except KQuantError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        if isinstance(error, Exception) and needs_code(error):
            what = code_sentence(f"the tokenizer of {path}", " (auto_map)")
            raise KQuantError(f"{what}: give a model that transformers itself knows") from error
        if files == () and isinstance(error, OSError | ValueError):
            raise NoTokenizerError(_none(path)) from error
        for name in files or ():
            if name in JSON_FILES:
                read_object(Path(path) / name)  # says what is wrong where it is no JSON
        named = f" ({', '.join(files)})" if files else ""
        said = clipped(first_line(error, "it gives no reason"), 200).rstrip(".")
        raise KQuantError(
            f"the tokenizer of {path}{named} cannot be used ({type(error).__name__}: {said}): "
            "put the files that came with the model beside the weights"
        ) from error


def encode(tokenizer: Any, *texts: Any, **options: Any) -> Any:
    """What the tokenizer makes of a text, a list of texts, or two lists of pairs; KQuantError where it fails."""
    with tokenizer_of(tokenizer.name_or_path):
        return tokenizer(*texts, verbose=False, **options)


@dataclass(frozen=True)
class Decoder:
    """What transformers' TextStreamer asks of a tokenizer; its failures are KQuantErrors."""

    tokenizer: Any

    def decode(self, ids: Any, **options: Any) -> str:
        """The text of token ids."""
        with tokenizer_of(self.tokenizer.name_or_path):
            text: str = self.tokenizer.decode(ids, **options)
        return text


def text_ids(tokenizer: Any, text: str, count: int, *, letters: int, special: bool) -> list[int]:
    """The first `count` ids of the text, or all that it has.

    `letters` of the text are tokenised at first for each id, so that not all of a long one is; `special`: with the
    special tokens that the tokenizer puts before a text.
    """
    read = letters * count
    ids = _encoded(tokenizer, text[:read], special)
    while len(ids) < count and read < len(text):
        read *= 4
        ids = _encoded(tokenizer, text[:read], special)
    return ids[:count]


def _encoded(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids: list[int] = encode(tokenizer, text, add_special_tokens=special)["input_ids"]
    return ids


def _bounded_files(folder: Path) -> tuple[str, ...]:
    """The names of the tokenizer's files in a folder; KQuantError for one that is too large or no plain file."""
    found = tuple(name for name in (*JSON_FILES, *OTHER_FILES) if (folder / name).exists())
    for name in found:
        try:
            with open_plain(folder / name) as file:
                size = file.seek(0, 2)
        except OSError as error:
            raise KQuantError(
                f"{folder / name} cannot be read ({error.strerror}): put the model's own there"
            ) from error
        if size > MOST_BYTES:
            raise KQuantError(
                f"{folder / name} has {size} bytes, and at most {MOST_BYTES} are read of a tokenizer's file: put the "
                "model's own there"
            )
    return found


def _try(tokenizer: Any) -> None:
    """Use the tokenizer as it will be used, so that wrong settings are found now; anything may be raised."""
    require_little_growth(tokenizer)
    ids = tokenizer(TRIED, verbose=False)["input_ids"]
    if not isinstance(ids, list) or not all(type(number) is int and number >= 0 for number in ids):
        raise ValueError(f"it makes no token ids of a text, but {ids!r}")
    tokenizer.decode(ids, skip_special_tokens=True)
    tokenizer.num_special_tokens_to_add(pair=False)
    if type(tokenizer.model_max_length) not in (int, float) or not tokenizer.model_max_length > 0:
        raise ValueError(f"model_max_length is {tokenizer.model_max_length!r}, expected a number above 0")
    for name in ("padding_side", "truncation_side"):
        if getattr(tokenizer, name) not in SIDES:
            raise ValueError(f"{name} is {getattr(tokenizer, name)!r}, expected {' or '.join(SIDES)}")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        if not (getattr(tokenizer, name) is None or type(getattr(tokenizer, name)) is int):
            raise ValueError(f"{name} is {getattr(tokenizer, name)!r}, expected a token's id")


def _none(path: str | Path) -> str:
    return f"{path} has no tokenizer that transformers can read: put its tokenizer.json beside the weights"

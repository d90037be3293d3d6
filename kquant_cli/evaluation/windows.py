"""How a text is cut into windows: the protocols under which language models' perplexities are published.

With L_w the mean loss of window w over the predictions that count, and T_w the number of its tokens that are new,

    perplexity = exp(sum_w T_w L_w / sum_w T_w)                    sum_w T_w = the end of the last window

gptq    windows of `seqlen` tokens without overlap, the tail dropped (arXiv 2210.17323, its code): T_w = seqlen, so this
        is the mean over the seqlen - 1 predictions of each window, a window's first token being predicted by nothing.
stride  each window starts `stride` tokens after the one before and counts only the tokens that are new (the loop of
        transformers' page on fixed-length models); the last window may be shorter.
paper   each window ends `stride` tokens after the one before, reaches back `seqlen` tokens or to the beginning of the
        text, and counts only the tokens that are new (the loop of arXiv 2404.09737's code). Where `stride` divides
        `seqlen` every token has the context that `stride` gives it; the weight of the first windows differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from kquant_cli.errors import KQuantError
from kquant_cli.hf.limits import maximum_length

PROTOCOLS: Final = ("gptq", "stride", "paper")
GPTQ_WINDOW: Final = 2048
DEFAULT_STRIDE: Final = 512


@dataclass(frozen=True)
class Window:
    """Tokens [begin, end) of the text, of which the last `scored` are new."""

    begin: int
    end: int
    scored: int

    @property
    def predictions(self) -> int:
        """How many of the new tokens are predicted: the window's first has nothing before it."""
        return min(self.scored, self.end - self.begin - 1)


@dataclass(frozen=True)
class Protocol:
    """A protocol with its lengths settled for one model, in tokens."""

    name: Literal["gptq", "stride", "paper"]
    seqlen: int
    stride: int

    def windows(self, tokens: int) -> list[Window]:
        """All windows of a text of that many tokens."""
        if self.name == "gptq":
            return [Window(i * self.seqlen, (i + 1) * self.seqlen, self.seqlen) for i in range(tokens // self.seqlen)]
        found: list[Window] = []
        begin = end = 0
        first = self.seqlen if self.name == "stride" else self.stride  # where the first window ends
        while end < tokens:
            reach = first + len(found) * self.stride
            previous, end, begin = end, min(reach, tokens), max(0, reach - self.seqlen)
            found.append(Window(begin, end, end - previous))
        # Windows that do not overlap may leave one last token, which nothing predicts.
        return found if found and found[-1].predictions else found[:-1]

    def sentence(self) -> str:
        """The protocol in words."""
        if self.name == "gptq":
            return f"gptq protocol: windows of {self.seqlen} tokens without overlap, tail dropped"
        if self.name == "stride":
            return f"stride protocol: windows of {self.seqlen} tokens every {self.stride}, only new tokens counted"
        return (
            f"paper's protocol: windows that end every {self.stride} tokens and reach back {self.seqlen}, "
            "only new tokens counted"
        )


def settle(name: str, seqlen: int | None, stride: int | None, maximum: int | None) -> Protocol:
    """The protocol `name` for a model that takes at most `maximum` tokens (None: not known); refuses what cannot be.

    Without `seqlen`, gptq takes 2048 or the maximum, whichever is smaller; the others take the maximum.
    """
    if name not in PROTOCOLS:
        raise KQuantError(f"protocol {name!r} is not known: use {', '.join(PROTOCOLS[:-1])} or {PROTOCOLS[-1]}")
    if seqlen is None:
        limit = GPTQ_WINDOW if maximum is None else maximum
        seqlen = min(limit, GPTQ_WINDOW) if name == "gptq" else limit
    bounded(seqlen, maximum)
    if name == "gptq":
        if stride is not None:
            raise KQuantError("--stride belongs to --protocol stride or paper; gptq's do not overlap: leave it out")
        return Protocol("gptq", seqlen, seqlen)
    if stride is None:
        stride = min(DEFAULT_STRIDE, seqlen)
    least = 2 if name == "paper" else 1  # the paper's first window is as long as the stride, and must predict something
    if not least <= stride <= seqlen:
        raise KQuantError(f"--stride {stride} must be from {least} to the window of {seqlen} tokens")
    return Protocol("paper" if name == "paper" else "stride", seqlen, stride)


def select(windows: Sequence[Window], limit: int | None) -> Sequence[Window]:
    """The first `limit` windows (None: all)."""
    if limit is not None and limit < 1:
        raise KQuantError(f"--limit {limit} leaves no window: give 1 or more")
    return windows if limit is None else windows[:limit]


def shared_maximum(configs: Sequence[Any]) -> int | None:
    """The longest input that all models' configs allow, or None where none sets a bound."""
    return min((bound for config in configs if (bound := maximum_length(config)) is not None), default=None)


def bounded(seqlen: int | None, maximum: int | None) -> int | None:
    """`seqlen` or, without it, `maximum`; refuses what the model cannot read."""
    if seqlen is not None and seqlen < 2:
        raise KQuantError(f"a window of {seqlen} tokens predicts nothing: give --seqlen 2 or more")
    if seqlen is not None and maximum is not None and seqlen > maximum:
        raise KQuantError(f"--seqlen {seqlen} is longer than the model's maximum of {maximum} tokens: give less")
    return maximum if seqlen is None else seqlen

"""What every measurement has in common, whatever its task: numbers, how they were got, and the original beside them."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.versions import versions
from kquant_cli.hf.loading import LoadedModel


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, None where there are too few observations for one."""

    value: float
    standard_error: float | None

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        return f"{self.value:.4g}{error}"


@dataclass(frozen=True, kw_only=True)
class Against:
    """The same measurement of the original, and how far the model is from it, on the same observations."""

    model: str
    model_kind: str
    dtype: str
    metrics: dict[str, float]  # the original's
    differences: dict[str, Estimate]  # model minus original, each with its paired standard error
    paired_over: str  # windows | examples
    per: str  # token | example: what the two below are means over
    kl_divergence: Estimate | None  # KL(original || model) of the predicted distributions, nats
    agreement: float | None  # share of predictions whose most likely outcome is the same

    def sentence(self) -> str:
        """The comparison in words."""
        differences = (
            f"{name.replace('_', ' ')} {'+' if difference.value >= 0 else ''}{difference}"
            for name, difference in self.differences.items()
        )
        parts = [f"model minus original (paired over {self.paired_over}): {', '.join(differences)}"]
        if self.kl_divergence is not None:
            parts.append(
                f"KL(original || model) {self.kl_divergence} nats {'an' if self.per == 'example' else 'a'} {self.per}"
            )
        if self.agreement is not None:
            parts.append(f"same most likely outcome for {self.agreement:.2%} of {self.per}s")
        return f"against {self.model} ({self.model_kind}, {self.dtype}): {'; '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """One task's numbers for one model, with all that is needed to compare them, or to measure them again."""

    data_is: ClassVar[str] = "data"

    task: str
    model: str
    model_kind: str  # dense | bundle
    protocol: str
    limit: int | None
    dtype: str
    device: str
    data: str  # what it was measured on, in words
    data_sha256: str
    tokenizer: str
    seconds: float
    versions: dict[str, str]
    against: Against | None = None

    @property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """The numbers to report, the most important one first."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How much they were measured on."""

    @abstractmethod
    def protocol_sentence(self) -> str:
        """The protocol in words, and how much was measured."""

    def sentence(self) -> str:
        """The line that goes with the numbers."""
        place = f"{self.dtype} on {self.device}; {self.data_is}: {self.data}, sha256 {self.data_sha256[:12]}"
        compared = "" if self.against is None else f"; {self.against.sentence()}"
        return f"{self.task}: {self.protocol_sentence()}; {place}{compared}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON entry; a number that is infinite or undefined is null there, for JSON knows neither."""
        entry = asdict(self)
        head = {key: entry.pop(key) for key in ("task", "model", "model_kind")}
        head |= {"metrics": self.metrics, "counts": self.counts, "sentence": self.sentence()}
        finite: dict[str, Any] = _finite(head | entry)
        return finite


@dataclass(frozen=True, kw_only=True)
class ScoresOverExamples(Result):
    """Metrics by name, over so many examples: of a classification task, or one of the harness."""

    scores: dict[str, float]  # nan where undefined
    examples: int

    @property
    def metrics(self) -> dict[str, float]:
        """The task's metrics."""
        return self.scores

    @property
    def counts(self) -> dict[str, int]:
        """How many examples, over all parts or members."""
        return {"examples": self.examples}


def common(loaded: LoadedModel, task: str, options: EvalOptions, *packages: str) -> dict[str, Any]:
    """The fields of every result that follow from the model and the options; `packages`: whose versions matter too."""
    return {
        "task": task,
        "model": loaded.path,
        "model_kind": loaded.kind,
        "limit": options.limit,
        "dtype": dtype_name(loaded),
        "device": loaded.devices,
        "tokenizer": type(loaded.tokenizer).__name__,
        "versions": versions(*packages),
    }


def dtype_name(loaded: LoadedModel) -> str:
    """The dtype that the model computes in, such as float32."""
    return str(loaded.dtype).removeprefix("torch.")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value

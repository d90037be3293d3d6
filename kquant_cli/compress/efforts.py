"""How much calibration and tuning an effort means, where the settings do not say."""

from __future__ import annotations

from typing import Final

from kquant_cli.config import CompressConfig
from kquant_cli.tuning.budget import Budget

TOKENS: Final = {
    "fast": (8, 16384),
    "balanced": (16, 32768),
    "best": (64, 131072),
}  # a channel of the widest input; at most
FEWEST: Final = 2048
MINUTES: Final = {
    "cpu": {"fast": 0.0, "balanced": 20.0, "best": 120.0},
    "cuda": {"fast": 0.0, "balanced": 4.0, "best": 30.0},
}
MOST_STEPS: Final = {"fast": 100, "balanced": 300, "best": 1500}  # of tuning for so many minutes at most


def calibration_tokens(config: CompressConfig, widest: int) -> int:
    """How many tokens a calibration on text has, for matrices of at most `widest` in_features."""
    each, most = TOKENS[config.effort]
    return config.calibration_tokens or max(FEWEST, min(most, each * widest))


def tuning_budget(config: CompressConfig, device: str) -> Budget | None:
    """How long scales and norms are tuned; None: not at all."""
    if config.tune_steps is not None:
        return Budget(0.0, config.tune_steps) if config.tune_steps else None
    minutes = config.tune_minutes
    if minutes is None:
        minutes = MINUTES.get(device, MINUTES["cpu"])[config.effort]
    return Budget(minutes, None, MOST_STEPS[config.effort]) if minutes else None

"""The embedded language model and its evaluation text, as package data.

`opt-4m/` was trained by scripts/train_demo_model.py (its README.md has texts, steps and perplexities); `text.txt` is
encyclopedic prose written for this project.
"""

from pathlib import Path

_HERE = Path(__file__).parent


def demo_model_path() -> Path:
    """The folder of the embedded OPT model."""
    return _HERE / "opt-4m"


def demo_text_path() -> Path:
    """The evaluation text, UTF-8."""
    return _HERE / "text.txt"

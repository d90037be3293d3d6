"""The embedded models and what they are evaluated on, as package data.

`opt-4m/` was trained by scripts/train_demo_model.py (its README.md has texts, steps and perplexities); `text.txt` is
encyclopedic prose written for this project. `bert-sst2/` was trained by scripts/train_demo_classifier.py on SST-2;
`sentences/` has sentences about films in SST-2's format, written for this project, half of them positive.
"""

from pathlib import Path

_HERE = Path(__file__).parent


def demo_model_path() -> Path:
    """The folder of the embedded OPT model."""
    return _HERE / "opt-4m"


def demo_text_path() -> Path:
    """The evaluation text, UTF-8."""
    return _HERE / "text.txt"


def demo_classifier_path() -> Path:
    """The folder of the embedded classifier, a BERT trained on SST-2."""
    return _HERE / "bert-sst2"


def demo_sentences_path() -> Path:
    """The folder that has sentences for the classifier in SST-2/dev.tsv."""
    return _HERE / "sentences"

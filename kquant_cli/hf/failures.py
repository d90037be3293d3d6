"""What transformers, and the code of its models, raise for a checkpoint that they cannot use, and the words for it."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Final

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

# For values of config.json that they cannot use, such as a hidden_size of null.
VALUE_FAILURES: Final = (StrictDataclassError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)
# For a checkpoint that is absent, damaged or of an unknown kind, and for inputs that a model cannot take.
FAILURES: Final = (
    *(OSError, ValueError, RuntimeError, ImportError, SafetensorError, UnpicklingError),
    *VALUE_FAILURES,
)


def is_panic(error: BaseException) -> bool:
    """Whether it is a panic of a library in Rust, which pyo3 derives from BaseException alone."""
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"


def first_line(error: BaseException, otherwise: str) -> str:
    """The first line of what `error` says that is not blank; `otherwise` where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), otherwise)


def needs_code(error: BaseException) -> bool:
    """Whether transformers asks for leave to run the checkpoint's code, which it says in words alone."""
    return isinstance(error, ValueError) and "trust_remote_code=True" in str(error)


def code_sentence(what: str, named: str = "") -> str:
    """What is said of `what` where `needs_code`; `named`: how the user finds the code, behind it."""
    return f"{what} needs Python code that comes with it{named}, which kquant never runs"

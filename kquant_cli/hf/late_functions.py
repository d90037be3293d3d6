"""Keeps out of the process what transformers imports for one function that nothing here calls.

Losses of object detection name scipy.optimize's assignment, assisted generation names scikit-learn's ROC curve (which
brings scipy.stats): seconds of imports on a slow disk. Within `late_functions()` a stand-in gives such a function, and
the function imports its module when it is called; whatever else is asked of a stand-in, the module itself answers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any, Final

LATE: Final[Mapping[str, str]] = MappingProxyType(
    {"scipy.optimize": "linear_sum_assignment", "sklearn.metrics": "roc_curve"}
)


@contextmanager
def late_functions(late: Mapping[str, str] = LATE) -> Iterator[None]:
    """Within it, importing the one function of each module of `late` (module: function) does not import the module."""
    stand_ins = {name: _StandIn(name, function) for name, function in late.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for stand_in in stand_ins.values():
            stand_in.leave()


class _StandIn(ModuleType):
    """A module that has the one function, and becomes the real one where anything else is asked of it."""

    def __init__(self, name: str, function: str) -> None:
        super().__init__(name)
        self.__dict__[function] = _late(self, function)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # what the import system asks: the module's own would be imported for it
            raise AttributeError(attribute)
        return getattr(self.real(), attribute)

    def leave(self) -> None:
        """Make way for the real module."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def real(self) -> ModuleType:
        """The real module, imported now."""
        self.leave()
        return import_module(self.__name__)


def _late(module: _StandIn, function: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(module.real(), function)(*args, **kwargs)

    return call

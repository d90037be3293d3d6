"""A tensor that is still on disk: it has shape and dtype, takes no memory, and is read each time it is computed with.

transformers is given such tensors as a state dict, and maps them to a model's parameters in its own way: prefixes,
renamed keys, experts stacked and concatenated, dtypes cast. An operation among stored tensors alone is not computed but
remembered, and gives a stored tensor; one with any tensor in memory is computed, on values read for it and then freed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
KEEPS_VALUES = frozenset((aten.alias.default, aten.detach.default, aten._to_copy.default, aten.clone.default))


class LazyTensor(Tensor):
    """A tensor on disk, or what becomes of some.

    `is_copy`: it is one tensor on disk, unchanged but for dtype and device. `before_cast`: the same in its dtype on
    disk.
    """

    read: Callable[[], Tensor]
    is_copy: bool
    before_cast: LazyTensor | None

    @staticmethod
    def __new__(  # noqa: D102 (as all tensors that wrap nothing are made)
        cls,
        like: Tensor,
        device: torch.device,
        read: Callable[[], Tensor],
        is_copy: bool = True,
        before_cast: LazyTensor | None = None,
    ) -> LazyTensor:
        made = Tensor._make_wrapper_subclass(cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device)
        made.read, made.is_copy, made.before_cast = read, is_copy, before_cast
        return made

    @classmethod
    def on_disk(cls, shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], Tensor]) -> LazyTensor:
        """The tensor on disk that `read` gives."""
        like = torch.empty(shape, dtype=dtype, device="meta")
        return cls(like, torch.device("cpu"), read)

    def on(self, device: torch.device) -> LazyTensor:
        """The same, to be read onto `device`."""
        like = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="meta")
        cast = None if self.before_cast is None else self.before_cast.on(device)
        return LazyTensor(like, device, lambda: self.read().to(device), self.is_copy, cast)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"LazyTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        stored = [tensor for tensor in tensors if isinstance(tensor, LazyTensor)]
        if func._schema.is_mutable and isinstance(args[0], LazyTensor):
            raise RuntimeError(f"a weight would be changed in place by {func}")
        if func is aten.embedding.default and len(stored) == 1 and stored[0].before_cast is not None:
            # of a whole table, only the rows that are looked up are cast
            return func(stored[0].before_cast.read(), *args[1:], **kwargs).to(stored[0].dtype)
        if len(stored) < len(tensors):
            return func(*_read(args), **_read(kwargs))
        on_meta = tree_map_only(torch.device, lambda _: torch.device("meta"), kwargs)
        shapes = func(*_like(args), **_like(on_meta))
        device = kwargs.get("device") or stored[0].device
        is_copy = func in KEEPS_VALUES and stored[0].is_copy
        uncast = stored[0].before_cast if is_copy else None
        if is_copy and uncast is None and func is aten._to_copy.default:
            uncast = stored[0]

        def replay() -> Any:
            return func(*_read(args), **_read(kwargs))

        if isinstance(shapes, Tensor):
            return LazyTensor(shapes, device, replay, is_copy, uncast)
        if isinstance(shapes, (list, tuple)) and all(isinstance(shape, Tensor) for shape in shapes):
            return [
                LazyTensor(shape, device, lambda n=number: replay()[n], is_copy=False)  # type: ignore[misc]
                for number, shape in enumerate(shapes)
            ]
        return replay()


def _read(values: Any) -> Any:
    return tree_map_only(LazyTensor, lambda tensor: tensor.read(), values)


def _like(values: Any) -> Any:
    return tree_map_only(
        LazyTensor,
        lambda tensor: torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"),
        values,
    )

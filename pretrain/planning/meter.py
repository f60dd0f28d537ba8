"""A dispatch mode that counts the arithmetic, memory traffic and live memory of operations. Imports only
torch."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):
    """While active, counts the cost of operations. kernels: [(floating-point operations, bytes read and
    written)]; live, peak: bytes of the storages allocated while active and still referenced.

    Views and operations on shapes cost nothing. Scratch memory inside a kernel is not visible.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[float, float]] = []
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for x in given:
            self._keep(x, made=False)
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for x in made:
            self._keep(x)
        self.peak = max(self.peak, self.live)
        before = {x.untyped_storage()._cdata for x in given}
        if func._schema.is_mutable or any(x.untyped_storage()._cdata not in before for x in made):
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **kwargs, out_val=out) if count is not None else 0
            moved = sum(x.numel() * x.element_size() for x in (*given, *made))
            self.kernels.append((float(flops), float(moved)))
        return out

    def _keep(self, x: Tensor, made: bool = True) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if made else 0
        self._known[key] = weakref.finalize(storage, self._drop, key, size)
        self.live += size

    def _drop(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size

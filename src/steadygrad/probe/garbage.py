"""Make memory visible that a parameter was given but never filled.

`torch.empty` hands out whatever the memory held. A parameter that is registered while its memory
is still as `torch.empty` gave it is filled with NaN; an initialisation that follows overwrites it,
one that was forgotten leaves the NaN behind. Nothing else that uses `torch.empty` is touched.
(`torch.use_deterministic_algorithms` would fill every empty tensor, integer and scratch too, warn,
and change which kernels run.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

EMPTY = (torch.empty, torch.empty_like, torch.Tensor.new_empty, torch.empty_strided)
DATA = vars(torch._C.TensorBase)["data"].__get__  # an alias, through which anything can be written
SHARE = 0.05  # of a parameter that must still be NaN: single ones came from elsewhere
MANY = 1000  # noted storages after which those that were freed are forgotten


class Garbage(TorchFunctionMode):
    """Note the storages that `torch.empty` and its kin hand out, and parameters made of them.

    A storage is forgotten as soon as any torch function is given it: from then on it may hold
    something. Weak references keep its address from being taken for another's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._noted: dict[int, StorageWeakRef] = {}
        self._marked: list[weakref.ref[nn.Parameter]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # whatever func returns
        """Run a torch function; note what it leaves empty, forget what it is given."""
        kwargs = kwargs or {}
        if self._noted and (getattr(func, "__name__", "") != "__get__" or func == DATA):
            for given in (*args, *kwargs.values()):
                if isinstance(given, Tensor) and given.layout is torch.strided:
                    self._noted.pop(_address(given), None)
        out = func(*args, **kwargs)
        if func in EMPTY and kwargs.get("out") is None and _is_plain(out):
            self._note(out)
        return out

    def mark(self, _module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        """Fill a parameter with NaN if its memory is as `torch.empty` gave it."""
        with torch._C.DisableTorchFunction():
            if type(parameter) is not nn.Parameter or not _is_plain(parameter):
                return
            noted = self._noted.pop(_address(parameter), None)
            if noted is not None and parameter._version == 0:
                parameter.data.fill_(float("nan"))
                self._marked.append(weakref.ref(parameter))

    def left(self) -> set[int]:
        """Ids of the parameters that still hold what they were marked with."""
        alive = (one() for one in self._marked)
        return {id(p) for p in alive if p is not None and _share_of_nan(p) >= SHARE}

    def _note(self, out: Tensor) -> None:
        if len(self._noted) > MANY:
            self._noted = {at: ref for at, ref in self._noted.items() if not ref.expired()}
        self._noted[_address(out)] = StorageWeakRef(out.untyped_storage())


def _share_of_nan(parameter: Tensor) -> float:
    return float(torch.isnan(parameter.detach()).float().mean())


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_plain(tensor: object) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.is_floating_point()
        and tensor.device.type != "meta"
        and tensor.numel() > 0
    )


@contextmanager
def watched() -> Iterator[Garbage]:
    """Mark parameters that are made of garbage inside the block."""
    garbage = Garbage()
    hook = register_module_parameter_registration_hook(garbage.mark)
    try:
        with garbage:
            yield garbage
    finally:
        hook.remove()

"""Make inputs from a description on the command line: `f32[8,3,224,224]`, `i64[8,128]<50257`."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from steadygrad.replay.captured import CannotLook

DTYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
}
FORM = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d, ]*)\](?:<(?P<bound>\d+))?")


def tensor_of(text: str, *, bound: int = 2) -> Tensor:
    """Draw a tensor as described: N(0, 1) for floats, uniform below the bound for integers.

    The default bound is 2, since every index table has two rows.
    """
    found = FORM.fullmatch(text.strip())
    if found is None or found["dtype"] not in DTYPES:
        raise CannotLook(
            f'expected --input as "f32[8,3,224,224]", "i64[8,128]<50257" or pkg.mod:function, got '
            f'"{text}": give one of {", ".join(DTYPES)} and the sizes'
        )
    dtype = DTYPES[found["dtype"]]
    shape = [int(size) for size in found["shape"].replace(",", " ").split()]
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    return torch.randint(int(found["bound"] or bound), shape, dtype=dtype)

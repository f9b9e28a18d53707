"""Two ways to carry out what was decided, inside the optimizer's own step.

Fused optimizers take a divisor and a flag to skip along: their kernel divides while it reads the
gradients anyway. For the others gradients are divided in place, and withheld to skip a step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steadygrad.guards.norms import Reader
from steadygrad.guards.number import Number, Truth, either

MISSING = object()
LARGEST = 1e30  # divisor that float32 holds with its reciprocal


@dataclass(slots=True)
class Plan:
    """What all policies together want done: a divisor for all gradients, a skip, a share of lr.

    `divide` includes the scale of a GradScaler that has left the gradients scaled; `given` is that
    scale alone, 1 where there is none. `amp_skips` says that the GradScaler skips the step.
    """

    divide: Number = 1.0
    given: Number = 1.0
    skip: Truth = False
    amp_skips: Truth = False
    lr: float = 1.0

    @property
    def on_host(self) -> bool:
        """Whether everything is known, so that one may branch."""
        return isinstance(self.skip, bool) and not isinstance(self.divide, Tensor)


@dataclass(slots=True)
class Carried:
    """A plan being carried out, and how to undo it after the step."""

    optimizer: Optimizer
    attributes: dict[str, Any] = field(default_factory=dict)  # as found, MISSING where not there
    withheld: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    rates: list[tuple[dict[str, Any], Any]] = field(default_factory=list)

    def set_attribute(self, name: str, value: Tensor) -> None:
        """Set an attribute of the optimizer until the step is over."""
        self.attributes.setdefault(name, vars(self.optimizer).get(name, MISSING))
        setattr(self.optimizer, name, value)

    def withhold(self, parameters: Sequence[Tensor]) -> None:
        """Take the gradients away, so that the step has nothing to do: exact for any optimizer."""
        for one in parameters:
            if one.grad is not None:
                self.withheld.append((one, one.grad))
                one.grad = None

    def scale_rates(self, factor: float) -> None:
        """Multiply the learning rates."""
        for group in self.optimizer.param_groups:
            self.rates.append((group, group["lr"]))
            group["lr"] = group["lr"] * factor

    def undo(self) -> None:
        """Put back what was found, an attribute that was None included."""
        for name, value in self.attributes.items():
            if value is not MISSING:
                setattr(self.optimizer, name, value)
            elif name in vars(self.optimizer):
                delattr(self.optimizer, name)
        for one, grad in self.withheld:
            if one.grad is None:  # after an interrupted step there may be a new one
                one.grad = grad
        for group, rate in self.rates:
            group["lr"] = rate
        self.attributes, self.withheld, self.rates = {}, [], []


def carry_out(carried: Carried, reader: Reader, plan: Plan, *, fused: bool) -> None:
    """Prepare the optimizer so that its step does what was planned."""
    if plan.lr != 1.0:
        carried.scale_rates(plan.lr)
    # a kernel takes the divisor in float32: too coarse for float64, and too small for some
    too_fine = plan.on_host and not plan.skip and (reader.double or plan.divide > LARGEST)
    if not fused or too_fine:
        _in_place(carried, reader, plan)
    elif plan.on_host and (plan.skip or plan.amp_skips) and _loses_momentum(carried.optimizer):
        carried.withhold(reader.parameters)
    else:
        _along(carried, plan, _device(reader))


# --- Fused: the kernel divides and skips -------------------------------------------------------


def _along(carried: Carried, plan: Plan, device: torch.device) -> None:
    """Hand divisor and flag to the kernel: 0-d float32, the flag exactly 0 or 1.

    On the host nothing is handed over where nothing is to be done, so that such a step is the
    unguarded one bit by bit, and costs what it costs.
    """
    if not plan.on_host:
        _loses_momentum(carried.optimizer)
        stops = torch.as_tensor(plan.skip, device=device) | torch.as_tensor(plan.amp_skips)
        divisor = either(stops, 1.0, plan.divide)
        carried.set_attribute("grad_scale", torch.as_tensor(divisor, device=device).float())
        carried.set_attribute("found_inf", stops.float())
        return
    if plan.skip or plan.amp_skips:
        carried.set_attribute("found_inf", torch.ones((), device=device))
    elif plan.divide != plan.given:
        divisor = torch.tensor(plan.divide, dtype=torch.float32, device=device)
        carried.set_attribute("grad_scale", divisor)


def _loses_momentum(optimizer: Optimizer) -> bool:
    """Whether a skipped first step of fused SGD would leave momentum as memory nobody wrote to.

    torch makes the buffer before the kernel declines to fill it. A buffer of zeros gives the same
    second step where dampening is zero, and is made here; otherwise the caller must withhold.
    """
    lost = False
    for group in optimizer.param_groups:
        if not group.get("momentum") or "dampening" not in group:
            continue
        for one in group["params"]:
            state = optimizer.state[one] if one.grad is not None else {"momentum_buffer": one}
            if state.get("momentum_buffer") is None:
                if group["dampening"] == 0:
                    state["momentum_buffer"] = torch.zeros_like(one)
                else:
                    lost = True
    return lost


def _device(reader: Reader) -> torch.device:
    grads = (one.grad.device for one in reader.parameters if one.grad is not None)
    return next(grads, reader.parameters[0].device)


def takes_divisor(optimizer: Optimizer) -> bool:
    """Whether every group of an optimizer is fused, and its kernels divide and skip as expected."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    if not all(group.get("fused") for group in optimizer.param_groups):
        return False
    kinds = {
        (one.device.type, one.dtype) for group in optimizer.param_groups for one in group["params"]
    }
    kind: Any = type(optimizer)  # Optimizer's own __hash__ confuses the type checker
    return all(honours_protocol(kind, device, dtype) for device, dtype in kinds)


@functools.cache
def honours_protocol(kind: type[Optimizer], device: str, dtype: torch.dtype) -> bool:
    """Try on two elements whether an optimizer class divides by grad_scale and heeds found_inf.

    The protocol is what GradScaler relies on, but is not documented: it is tried once for each
    class, device and dtype, in the torch that runs.
    """
    try:
        return _divides(kind, device, dtype) and _skips(kind, device, dtype)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
        NotImplementedError,
    ):
        return False  # a class with other arguments, or kernels that know nothing of it


def _divides(kind: type[Optimizer], device: str, dtype: torch.dtype) -> bool:
    along, _ = _stepped(kind, device, dtype, factor=4.0, grad_scale=4.0)
    plain, before = _stepped(kind, device, dtype, factor=1.0)
    return torch.equal(along, plain) and not torch.equal(along, before)


def _skips(kind: type[Optimizer], device: str, dtype: torch.dtype) -> bool:
    after, before = _stepped(kind, device, dtype, factor=1.0, found_inf=1.0)
    return torch.equal(after, before)


def _stepped(
    kind: type[Optimizer], device: str, dtype: torch.dtype, *, factor: float, **attributes: float
) -> tuple[Tensor, Tensor]:
    """Two elements after and before a step on a gradient times a factor."""
    one = torch.nn.Parameter(torch.ones(2, device=device, dtype=dtype))
    one.grad = torch.tensor([0.5, -0.25], device=device, dtype=dtype) * factor
    # every fused optimizer of torch takes lr and fused; others end in TypeError
    optimizer = kind([one], lr=0.5, fused=True)  # type: ignore[call-arg]
    for name, value in attributes.items():
        setattr(optimizer, name, torch.tensor(value, device=device))
    before = one.detach().clone()
    optimizer.step()
    return one.detach(), before


# --- Others: gradients divided in place, or withheld ---------------------------------------------


def _in_place(carried: Carried, reader: Reader, plan: Plan) -> None:
    """Divide what must be divided; a skip costs one read of the flag on a device."""
    if bool(plan.skip):
        carried.withhold(reader.parameters)
    elif isinstance(plan.divide, Tensor) or plan.divide != plan.given:
        divide(reader.grads(), plan.divide / plan.given)


def divide(grads: Sequence[Tensor], divisor: Number) -> None:
    """Divide plain dense tensors in place by one number."""
    if grads and isinstance(divisor, Tensor):
        torch._foreach_mul_(list(grads), divisor.reciprocal().float())
    elif grads:
        while divisor > LARGEST:  # the reciprocal would be no normal float32
            torch._foreach_mul_(list(grads), 1.0 / LARGEST)
            divisor /= LARGEST
        torch._foreach_mul_(list(grads), 1.0 / divisor)


def divide_each(reader: Reader, divisors: Tensor) -> None:
    """Divide each gradient by its own number [parameters], where that is not 1."""
    if divisors.device.type != "cpu":
        for grad, divisor in zip(reader.all(), divisors.unbind(), strict=True):
            if grad is not None:
                grad.div_(divisor)
        return
    for grad, divisor in zip(reader.all(), divisors.tolist(), strict=True):
        if grad is not None and divisor != 1.0:
            grad.div_(divisor)

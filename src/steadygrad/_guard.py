"""guard(): policies between backward and step, without a change to the loop."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from steadygrad.core.record import record_of
from steadygrad.core.report import Report, diagnose
from steadygrad.detectors import CLIPPING
from steadygrad.guards.attachment import Attachment
from steadygrad.guards.history import History, suggestion
from steadygrad.guards.number import Truth
from steadygrad.guards.policies.checks import whole
from steadygrad.guards.policies.nonfinite import skip_nonfinite
from steadygrad.guards.policies.norm import clip_norm
from steadygrad.guards.policy import Policy
from steadygrad.guards.refusals import refuse


def guard(
    optimizer: Optimizer,
    *policies: Policy,
    model: nn.Module | None = None,
    strict: bool = False,
    keep: int = 10_000,
) -> Handle:
    """Let policies look at the gradients before every step of an optimizer, and act on them.

    Policies act in the order given, each on what the one before left; without any they are
    `skip_nonfinite()` and `clip_norm(1.0)`. Where nothing is to be done, the step is bit by bit the
    unguarded one. The loop stays as it is, also under GradScaler (with `unscale_` and without),
    gradient accumulation, and sharded training (DDP, FSDP, tensor parallel): every rank decides
    alike. Fused optimizers (`fused=True`) clip and skip inside their kernel.

    Args:
        optimizer: The optimizer, any but LBFGS, which evaluates the loss many times in a step.
        *policies: `sg.clip_norm(1.0)` and the like, or your own: see `guards.policy.Policy`.
        model: Gives names to parameters; and a skipped step takes back what the forward pass did
            to its buffers (the running statistics of batch norm). Load a checkpoint into it before,
            or into the handle after it. FSDP1 needs it.
        strict: Raise what goes wrong in a policy. Otherwise it is reported once, as a
            RuntimeWarning, and the policy steps aside.
        keep: How many events `handle.history` holds.

    Raises:
        TypeError: for what is no optimizer or no policy.
        ValueError: for an optimizer that can't be guarded, or is already.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"guard(model=) expected a torch module, got {type(model).__name__}")
    whole("keep", keep, 1)
    chosen = policies or (skip_nonfinite(), clip_norm(1.0))
    real = refuse(optimizer, chosen)
    return Handle(real, chosen, model, strict=strict, keep=keep)


class Handle:
    """A guard at work: what it has done, and the way to end it. Also a context manager."""

    def __init__(
        self,
        optimizer: Optimizer,
        policies: tuple[Policy, ...],
        model: nn.Module | None,
        *,
        strict: bool,
        keep: int,
    ) -> None:
        self._history = History(keep)
        self._attachment = Attachment(
            optimizer, policies, model, strict=strict, keep=self._history.add
        )

    @property
    def history(self) -> History:
        """The last events, oldest first. Waits for what is still on its way from a device."""
        self._attachment.flush()
        return self._history

    @property
    def skipped(self) -> Truth:
        """Whether the last step was skipped: a bool on the CPU, on a device a 0-d tensor.

        A scheduler that should not advance then: `if not handle.skipped: scheduler.step()`.
        """
        return self._attachment.skipped

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies, in order."""
        return self._attachment.policies

    def suggest(self) -> str:
        """Print, and return, what thresholds would have done to the norms seen so far."""
        said = [textwrap.fill(one.says, 78) for one in self.report().findings]
        text = "\n\n".join([suggestion(self.history), *said])
        print(text)  # noqa: T201 - what the method is for
        return text

    def report(self) -> Report:
        """What is wrong with how the run is clipped, if anything."""
        history = self.history
        bound = [one for one in history if one.threshold < float("inf")]
        facts = {
            "steps": len(bound),
            "clipped": sum(one.clipped for one in bound),
            "largest": max((one.norm for one in bound if not one.skipped), default=0.0),
            "threshold": bound[-1].threshold if bound else float("inf"),
        }
        return diagnose(record_of([], {"clipping": facts}), CLIPPING)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to decide as if it had never stopped."""
        self._attachment.flush()
        return {
            "steps": self._attachment.steps,
            "policies": [{"name": one.name, **one.state_dict()} for one in self.policies],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned, into a guard with the same policies."""
        if not isinstance(state, Mapping) or not {"steps", "policies"} <= state.keys():
            raise ValueError(
                f"expected what handle.state_dict() returned, got {type(state).__name__}: give it "
                "the guard's own part of the checkpoint"
            )
        names, mine = [one["name"] for one in state["policies"]], [p.name for p in self.policies]
        if names != mine:
            raise ValueError(
                f"expected the state of the policies {', '.join(mine)}, got one of "
                f"{', '.join(names)}: give guard() the same policies in the same order"
            )
        self._attachment.steps = state["steps"]
        for policy, one in zip(self.policies, state["policies"], strict=True):
            policy.load_state_dict(one)
        self._attachment.accept_buffers()

    def remove(self) -> None:
        """Detach from the optimizer, which is left as it was found."""
        self._attachment.flush()
        self._attachment.remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Handle({', '.join(p.name for p in self.policies)}; {self._history!r})"

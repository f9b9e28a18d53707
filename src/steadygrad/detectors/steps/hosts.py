"""What a host hides: NaN that a log filters out, hooks that a compiled module does not call."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.words import layers


@detector("G503", "hidden-nan", needs=("hidden_nan",))
def hidden_nan(record: Record) -> Iterator[Finding]:
    """A loss that is NaN in the training and 0.0 in the log.

    **What it looks at.** Steps whose loss was not finite while the host that writes the log
    replaces such losses: transformers' `logging_nan_inf_filter`, which is on by default, adds
    nothing for them, so that a run of NaN is shown as 0.0.

    **Why it matters.** The log shows a perfect loss, or one a little too low.

    **When it is wrong.** Not that we know: both the loss and the setting were read.

    **What to try.** `TrainingArguments(logging_nan_inf_filter=False)`, and see why it is NaN.

    **References.** trl #1173, TinyLlama #153, ModernBERT #233.
    """
    facts = record.facts["hidden_nan"]
    steps = facts.get("steps") or []
    if steps:
        yield Finding(
            Severity.risk,
            f"the loss was not finite in {len(steps)} steps, first in step {steps[0]}, and "
            f"{facts['host']} does not show it ({facts['setting']}).",
            ("loss",),
            {"steps": float(len(steps)), "setting": facts["setting"]},
            try_next=(Advice("show-nan", f"{facts['setting']}=False"),),
            steps=(int(steps[0]), int(steps[-1])),
            magnitude=1.0,
        )


@detector("G504", "ineffective-hook", needs=("ineffective_hooks",))
def ineffective_hook(record: Record) -> Iterator[Finding]:
    """A hook that is registered on a module which was compiled before.

    **What it looks at.** Modules whose hooks were registered after `torch.compile` had traced them:
    the compiled code does not call them.

    **Why it matters.** A hook that clips, masks, or logs seems to be there and does nothing.

    **When it is wrong.** When the module is traced again later for another reason, its hooks act
    from then on.

    **What to try.** Register hooks before the first compiled call.

    **References.** PyTorch, "torch.compile", section on nn.Module hooks.
    """
    names = tuple(record.facts["ineffective_hooks"] or ())
    if names:
        yield Finding(
            Severity.risk,
            f"hooks of {layers(names)} were registered after compiling and are not called.",
            names,
            {"modules": float(len(names))},
            try_next=(Advice("hook-before-compile"),),
        )


@detector("G505", "diverged-ranks", needs=("ranks",), explains=("G411",))
def diverged_ranks(record: Record) -> Iterator[Finding]:
    """Ranks that should train the same network and do not.

    **What it looks at.** The norms of gradients and weights on each rank of a training under
    DistributedDataParallel, every 50 steps: what DDP has reduced is the same on all of them, up to
    rounding, and so are weights that have seen nothing else.

    **Why it matters.** Each rank descends from another place; the averaged gradient belongs to
    none of them. Saved weights are those of one rank.

    **When it is wrong.** Methods that let ranks drift on purpose (local SGD, DiLoCo) and buffers
    that every rank keeps for itself.

    **What to try.** The same seed and checkpoint on all ranks before the model is wrapped; skip a
    step on all ranks or on none; touch parameters and gradients only where all ranks do.

    **References.** facebookresearch/metaseq #521 (ranks that skip steps one by one).
    """
    diverged = record.facts["ranks"].get("diverged") or []
    if diverged:
        first = min(diverged, key=lambda one: int(one["step"]))
        worst = max(float(one["spread"]) for one in diverged)
        yield Finding(
            Severity.broken,
            f"the {first['name']} differs between the {record.facts['ranks']['world']} ranks since "
            f"step {first['step']}, by up to {worst:.2g} of its size.",
            ("optimizer",),
            {"spread": worst, "times": float(len(diverged))},
            steps=(int(first["step"]), int(first["step"])),
            magnitude=8.0,
        )

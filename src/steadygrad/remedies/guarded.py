"""Guards before the step: clipping and skipping."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from steadygrad.guards.attachment import Attachment
from steadygrad.guards.policies.agc import clip_agc
from steadygrad.guards.policies.nonfinite import skip_nonfinite
from steadygrad.guards.policies.norm import clip_norm
from steadygrad.guards.policies.outlier import skip_outlier
from steadygrad.guards.policies.quantile import clip_quantile
from steadygrad.guards.policies.value import clip_value
from steadygrad.guards.policies.zscore import clip_zscore
from steadygrad.guards.policy import Event, Policy
from steadygrad.guards.refusals import refuse
from steadygrad.remedies.remedy import Change, Remedy, Scene, Unfit, remedy

FORWARD = "Clipping cures no failure of the forward pass or of the initialisation."


def guarded(scene: Scene, code: str, policy: Policy) -> Change:
    """Attach a policy to the optimizer's step."""
    try:
        real = refuse(scene.optimizer, [policy])
        Attachment(real, [policy], scene.model, strict=False, keep=_forget)
    except (TypeError, ValueError) as error:
        raise Unfit(f"This optimizer can't be guarded: {error}.") from error
    return Change(f"sg.guard(optimizer, sg.{code}, model=model)")


def _forget(_: Event) -> None:
    """Keep no history of a trial."""


def _remedy(
    name: str, code: str, make: Callable[[], Policy], cures: tuple[str, ...], text: str
) -> Remedy:
    def apply(scene: Scene) -> Change:
        return guarded(scene, code, make())

    apply.__doc__ = inspect.cleandoc(text)
    return remedy(name, "guard", cures=cures, size=1)(apply)


GUARDS: tuple[Remedy, ...] = (
    _remedy(
        "clip-norm",
        "clip_norm(1.0)",
        lambda: clip_norm(1.0),
        ("G108", "G106", "G101", "G401", "G403", "G006", "G606"),
        f"""Scale gradients down together where their norm is above 1.

        **When it fails.** {FORWARD} Where every step is clipped the threshold sets the step's size,
        and hides a learning rate that is too high.

        **Reference.** Pascanu 2013, section 3.2, algorithm 1; 1.0 as in most language models.
        """,
    ),
    _remedy(
        "clip-value",
        "clip_value(0.1)",
        lambda: clip_value(0.1),
        ("G108", "G106", "G101"),
        f"""Cut each element of the gradients to at most 0.1 in size.

        **When it fails.** {FORWARD} The direction of the step changes. The right value depends on
        the number of parameters; 0.1 is chosen by us.

        **Reference.** Mikolov 2012 (thesis), section 3.2.2.
        """,
    ),
    _remedy(
        "clip-agc",
        "clip_agc(0.01)",
        lambda: clip_agc(0.01),
        ("G401", "G101", "G108", "G403"),
        """Clip the gradient of each unit at a hundredth of the norm of its weights.

        **When it fails.** Weights that begin near zero can hardly leave it. The authors leave the
        last layer out, which nobody can tell from the parameters alone.

        **Reference.** Brock 2021, section 4, equation 3.
        """,
    ),
    _remedy(
        "clip-quantile",
        "clip_quantile(0.5)",
        lambda: clip_quantile(0.5),
        ("G108", "G101"),
        """Clip at the median of the norms so far, once ten are known.

        **When it fails.** An explosion within the first ten steps. Half of the steps are clipped by
        construction; the authors' 0.1 clips nine of ten.

        **Reference.** Seetharaman 2020 (AutoClip), section 2.
        """,
    ),
    _remedy(
        "clip-zscore",
        "clip_zscore(warmup=10, max_norm=None)",
        lambda: clip_zscore(warmup=10, max_norm=None),
        ("G108",),
        """Clip norms that are 2.5 deviations above their moving average, after ten steps.

        **When it fails.** Spikes within the first ten steps, and an explosion that is slow enough
        for the average to follow.

        **Reference.** Kumar 2025 (ZClip), section 3, algorithm 1; ten steps of warm-up instead of
        their 25 are chosen by us, for short trials.
        """,
    ),
    _remedy(
        "skip-outlier",
        "skip_outlier(window=16)",
        lambda: skip_outlier(window=16),
        ("G108",),
        """Skip steps whose log norm is six robust deviations above the median of the last 16.

        **When it fails.** A lasting change is skipped until it fills half of the window. Skipped
        batches are not learned from.

        **Reference.** OLMo 2 (2024), section 3.3: six deviations; theirs is over 128 steps, 16 is
        chosen by us, for short trials.
        """,
    ),
    _remedy(
        "skip-nonfinite",
        "skip_nonfinite()",
        skip_nonfinite,
        ("G001", "G004", "G003", "G005", "G108"),
        """Skip steps whose gradients hold an infinity or a NaN.

        **When it fails.** What recurs in every batch, as a division by zero, stops training for
        good. It does not mend weights or buffers that are broken already.

        **Reference.** Micikevicius 2018, section 3.2: steps that overflow are skipped.
        """,
    ),
)

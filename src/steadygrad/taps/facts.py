"""What is known of a run that is not a number in a step: wiring, optimizers, the order of calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.steps import OF_OUTPUT, Row
from steadygrad.taps.constant import constant_of
from steadygrad.taps.held import Held
from steadygrad.taps.watcher import LEARNING, Circumstances, Watcher, hooks_in

OF_SOME = ("dead", "saturated", "logit")  # outputs of relus, of tanh and sigmoid, of attention
Facts = dict[str, Any]  # JSON-like, see core.record.Facts


def facts_of(watcher: Watcher, rows: Sequence[Row]) -> Facts:
    """Everything that detectors over many steps want to know besides the readings."""
    known = [*watcher.retired, *watcher.held.values()]
    watcher.ranks.look()
    steps = watcher.step + 1
    facts: Facts = {
        "run": {"steps": steps, "compiled": watcher.about.compiled},
        "optimizers": [_settings(one) for one in known],
        "wiring": {
            **_wiring(known, watcher.about),
            "zero": _zero(known, rows),
            "steps": steps,
            "unmoved": _unmoved(known, rows),
        },
        "blind": dict(watcher.about.blind),
        "clip_order": _order(watcher),
        "clipping": _clipping(rows),
        "hidden_nan": _hidden(watcher, rows),
        "ineffective_hooks": _ineffective(watcher),
        **watcher.targets.facts(),
        "ranks": {"world": watcher.ranks.world, "diverged": watcher.ranks.diverged},
    }
    stale = [one.stale for one in known if one.stale.steps]
    if stale:
        worst = max(stale, key=lambda one: one.stale / one.steps)
        facts["stale"] = {"steps": worst.steps, "stale": worst.stale, "line": list(worst.line)}
    if watcher.about.loss_call is not None and not facts["constant"]:
        facts["constant"] = constant_of(watcher.about.loss_call)
    if watcher.about.scaler is not None:
        facts["scaler"] = watcher.about.scaler
    if watcher.recorder.stopped:
        facts["blind"] |= dict.fromkeys(OF_OUTPUT, watcher.recorder.stopped)
    elif any("rms" in row.read for row in rows):
        facts |= dict.fromkeys(OF_SOME, "a network without such outputs")
    return facts


def _settings(one: Held) -> Facts:
    name = "optimizer" if one.place == 0 else f"optimizer {one.place + 1}"
    return {"name": name, **one.settings}


def _wiring(known: Sequence[Held], about: Circumstances) -> Facts:
    """Parameters by what keeps them from being trained: four sets that have nothing in common."""
    mine = {site.name for one in known for site in one.sites}
    wants = [row for one in known for row in _presence(one)]
    came = {name for name, seen in wants if seen}
    stepped = {place for one in known for place in one.ids}
    loose = [row for place, row in about.loose.items() if place not in stepped]
    return {
        "model_parameters": about.parameters,
        "frozen": list(about.frozen),
        "outside": [name for name in about.outside if name not in mine],
        "no_gradient": [name for name, _ in wants if name not in came],
        "unregistered": [shape for in_sight, shape in loose if not in_sight],
        "elsewhere": [shape for in_sight, shape in loose if in_sight],
    }


def _unmoved(known: Sequence[Held], rows: Sequence[Row]) -> list[str]:
    """Parameters with a gradient of which no element has changed in any sampled step."""
    most = _most(rows, "moved")
    return [name for one in known for name, place, _ in _placed(one, most) if most[place] == 0]


def _zero(known: Sequence[Held], rows: Sequence[Row]) -> list[str]:
    """Parameters whose gradient was exactly zero in the first steps and in every sampled one."""
    most = _most([*rows[:LEARNING], *(row for row in rows if "moved" in row.read)], "grad")
    return [
        name
        for one in known
        for name, place, wants in _placed(one, most)
        if wants and most[place] == 0
    ]


def _most(rows: Sequence[Row], metric: str) -> NDArray[np.float32]:
    """The largest reading at each site [sites]; NaN where there was none."""
    read = [row.read[metric] for row in rows if metric in row.read]
    most = np.full(max((len(one) for one in read), default=0), np.nan, dtype=np.float32)
    for one in read:
        most[: len(one)] = np.fmax(most[: len(one)], one)
    return most


def _placed(one: Held, read: NDArray[np.float32]) -> list[tuple[str, int, bool]]:
    """Of parameters that were read: name, place, and whether a gradient is wanted."""
    rows = zip(one.sites, one.places, one.wants, strict=True)
    return [(site.name, int(place), bool(w)) for site, place, w in rows if place < len(read)]


def _presence(one: Held) -> list[tuple[str, bool]]:
    """Of parameters that want a gradient: the name, and whether one came."""
    rows = zip(one.sites, one.wants, one.seen, strict=True)
    return [(site.name, bool(seen)) for site, wants, seen in rows if wants]


def _order(watcher: Watcher) -> Facts:
    order = watcher.clips.order
    return {
        "steps": order.calls,
        "after_step": order.after_step,
        "before_backward": order.before_backward,
        "before_unscale": order.before_unscale,
        "line": list(order.line),
    }


def _clipping(rows: Sequence[Row]) -> Facts:
    bound = [row.read for row in rows if "max_norm" in row.read and "norm" in row.read]
    pairs = [(read["norm"][0], read["max_norm"][0]) for read in bound]
    finite = [(n, m) for n, m in pairs if math.isfinite(n) and math.isfinite(m)]
    return {
        "steps": len(finite),
        "clipped": sum(bool(n > m) for n, m in finite),
        "largest": max((float(n) for n, _ in finite), default=0.0),
        "threshold": float(finite[-1][1]) if finite else math.inf,
    }


def _hidden(watcher: Watcher, rows: Sequence[Row]) -> Facts:
    """Steps whose loss a host's log does not show as what it was."""
    if not watcher.about.filters:
        return {}
    steps = [
        row.step for row in rows if "loss" in row.read and not math.isfinite(row.read["loss"][0])
    ]
    return {"host": "transformers", "steps": steps, "setting": "logging_nan_inf_filter"}


def _ineffective(watcher: Watcher) -> list[str]:
    """Modules that got a hook after they were compiled."""
    if not watcher.about.compiled:
        return []
    now, then = hooks_in(watcher.models), watcher.about.hooks
    return [name for name in now if now[name] - then.get(name, frozenset())]

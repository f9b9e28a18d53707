"""Numbers that are NaN, infinite, or about to be, before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steadygrad.core.finding import Advice, Finding, Severity, detector
from steadygrad.core.record import Record
from steadygrad.detectors.words import layers

Fact = Mapping[str, Any]  # JSON-like, see core.record.Facts
FLOW = ("G101", "G102", "G103", "G104", "G105", "G106", "G107")
INSIDE = ("G201", "G202", "G205", "G301", "G302", "G303", "G304", "G501", "G602", "G606")
AFTER = (*FLOW, *INSIDE, "G006", "G008", "G401", "G402", "G403", "G405")
GIVEN = ("G002", "G003", "G004", "G005", "G007", *AFTER, "G601", "G605")

ZEROS = ("0", "-0")
LARGEST = {"float16": "65504", "bfloat16": "3.4e38"}
CURES = (
    (
        "softmax",
        "mask = mask & ~mask.all(-1, keepdim=True)  # True is masked: keep one key",
    ),
    ("rsqrt", "(x + 1e-6).rsqrt()  # eps inside the root"),
    ("sqrt", "(x + 1e-12).sqrt()  # eps inside the root, not behind it"),
    ("norm", "(x.square().sum(-1) + 1e-12).sqrt()"),
    ("log_softmax", "F.log_softmax(x, -1)"),
    (
        "log",
        "x.clamp_min(1e-12).log()  # of probabilities: F.log_softmax, F.logsigmoid",
    ),
    ("pow", "x.clamp_min(1e-12) ** p"),
    ("acos", "x.clamp(-1 + 1e-6, 1 - 1e-6).acos()"),
    ("asin", "x.clamp(-1 + 1e-6, 1 - 1e-6).asin()"),
    ("atanh", "x.clamp(-1 + 1e-6, 1 - 1e-6).atanh()"),
    ("exp", "x.clamp(max=20).exp()  # or F.softplus(x)"),
    ("std", "x.std(unbiased=False) + 1e-6  # or more than one sample"),
    ("var", "x.var(unbiased=False) + 1e-6  # or more than one sample"),
    ("div", "x / y.clamp_min(1e-6)"),
    ("reciprocal", "1 / x.clamp_min(1e-6)"),
)


@detector("G001", "nonfinite-data", needs=("nonfinite",), explains=GIVEN)
def nonfinite_data(record: Record) -> Iterator[Finding]:
    """NaN or infinity in what is fed to the model, or in the targets of its loss.

    What it looks at: the inputs of the outermost module call and the targets given to torch's loss
    functions, element by element. It is broken when outputs, loss, or gradients are broken too; a
    model that cleans its data gets a note. Inputs in which only -inf is found are masks and left to
    nonfinite-forward.

    Why it matters: one NaN in one sample makes every gradient of the batch NaN, and the step that
    follows makes every weight NaN.

    When it is wrong: the loss may leave the bad sample out; then this is a note.

    What to try: find out where the sample comes from; drop it, or fill the gap and tell the model.

    References: pytorch#100005-like reports are the largest confirmed cause of NaN losses.
    """
    facts = record.facts["nonfinite"]
    for row in facts["data"]:
        if row["count"] > row["minus"]:
            patch = "bad = ~torch.isfinite(x).flatten(1).all(1)\nx, y = x[~bad], y[~bad]"
            yield _bad_data(row, row["name"], "data", facts, patch)
    for one in record.facts.get("losses") or []:
        target = one["target"]
        if target.get("broken"):
            row = {"count": target["broken"], "numel": target["numel"], "places": []}
            row["samples"] = target["samples"]
            patch = "seen = torch.isfinite(y)\nloss = loss_fn(prediction[seen], y[seen])"
            yield _bad_data(row, f"the target of {one['name']}", "target", facts, patch)


def _bad_data(row: Fact, name: str, where: str, facts: Fact, patch: str) -> Finding:
    samples = ", ".join(str(one) for one in row["samples"])
    at = f", at {_index(row['places'][0])}" if row["count"] == 1 and row["places"] else ""
    count = "1 number" if row["count"] == 1 else f"{row['count']} numbers"
    says = f"{count} of {row['numel']} in {name} {_be(row)} NaN or infinite (sample {samples}{at})"
    return Finding(
        Severity.broken if _matters(facts) else Severity.note,
        says,
        (where,),
        {"count": float(row["count"]), "numel": float(row["numel"]), "samples": samples},
        try_next=(Advice("drop-bad-samples", patch),),
        magnitude=9.0,
    )


def _be(row: Fact) -> str:
    return "is" if row["count"] == 1 else "are"


def _index(place: Sequence[int]) -> str:
    return "[" + ", ".join(str(one) for one in place) + "]"


def _matters(facts: Fact) -> bool:
    """Whether anything broken reaches the loss, its gradient, or, without a loss, the outputs."""
    outputs = facts["loss"] is None and facts["nan_outputs"]
    return bool(outputs or facts["loss"] or facts["gradients"])


@detector("G002", "nonfinite-forward", needs=("nonfinite",), explains=("G003", "G004", *AFTER))
def nonfinite_forward(record: Record) -> Iterator[Finding]:
    """An op of the model makes NaN or infinity of finite numbers, or a weight is broken already.

    What it looks at: outputs and loss. Only when they are broken is the pass run again, and each
    op below autograd asked whether its output is broken while its inputs are finite; a broken value
    carries the name of the op it was born in, so that an infinity is blamed and not the norm that
    makes NaN of it two layers later. An infinity that was asked for (masked_fill, where, full, an
    additive mask) is not to blame; a softmax over nothing but such is. Where a row is masked
    throughout in the model's own forward, no layer is at fault but the data, which is named.

    Why it matters: the loss is NaN, and after one step every weight is.

    When it is wrong: an op of which only some outputs matter; the first one that reaches the loss
    is named.

    What to try: eps inside the root or log, clamp before the op, the fused function
    (log_softmax, logsigmoid, logsumexp) in place of its parts, one key left visible.

    References: pytorch#41508 (fully masked rows), pytorch#160016 (first NaN is not the cause).
    """
    facts = record.facts["nonfinite"]
    bad = [row for row in facts["parameters"] if _matters(facts) or row["nan"]]
    if bad:
        step = record.facts.get("step")
        when = "before the first step" if step is None else f"before step {step}"
        yield _bad_weights(bad, facts, when)
    event = facts["forward"]
    reaches = facts["loss"] is not False
    if event and reaches and event["module"] is not None and not bad and not _is_half(event):
        yield _broken_op(event, "forward")


def _bad_weights(bad: Sequence[Fact], facts: Fact, when: str) -> Finding:
    owners = tuple(dict.fromkeys(row["name"].rpartition(".")[0] for row in bad))
    first = bad[0]
    says = (
        f"{first['count']} of {first['numel']} numbers of {first['name']} "
        f"{_be(first)} NaN or infinite {when}"
    )
    says += f", and {len(bad) - 1} more parameters are broken" if len(bad) > 1 else ""
    patch = f"model.get_submodule({owners[0]!r}).reset_parameters()"
    return Finding(
        Severity.broken if _matters(facts) else Severity.risk,
        says,
        owners,
        {"count": float(first["count"]), "parameters": float(len(bad))},
        try_next=(Advice("reinitialise", patch),),
        magnitude=8.0,
    )


@detector("G003", "nonfinite-loss", needs=("nonfinite",), explains=("G401", "G402", "G405"))
def nonfinite_loss(record: Record) -> Iterator[Finding]:
    """The model's outputs are finite and the loss is not.

    What it looks at: as nonfinite-forward, where the op that broke was called outside of the model.
    Where no op broke, the op is named that was given something broken: a constant (a class weight
    1/0, an advantage over the deviation of one sample), whose own op and line a script's check
    knows, or a score of -inf that a mask put at the label's own place.

    Why it matters: no step can be made of it.

    When it is wrong: a first batch that is degenerate (nothing masked in, one sample) may be alone.

    What to try: as for nonfinite-forward.

    References: pytorch#2421, #49886 (logs and roots at zero).
    """
    facts = record.facts["nonfinite"]
    event = facts["forward"]
    if facts["loss"] and event and event["module"] is None and not _is_half(event):
        yield _broken_op(event, "loss")
    elif facts["loss"] and not event and not facts["data"] and not facts["parameters"]:
        yield _let_in(facts["entered"]) if facts.get("entered") else _nameless()


def _nameless() -> Finding:
    says = "the loss is NaN or infinite, and no op could be named that makes it so"
    return Finding(Severity.broken, says, ("loss",), confidence="possible", magnitude=7.0)


def _let_in(event: Fact) -> Finding:
    """Say which op was given something broken, and where that came from."""
    born, result = event["born"], _number(event["result"])
    evidence = {"op": event["op"], "result": str(event["result"])}
    if event["asked"]:
        return _asked_for(event, evidence)
    at = f" at {_index(event['index'])}" if event["index"] else ""
    says = f"{event['op']} in {_place(event)} is given a tensor that is {result}{at} already"
    says += _line(event)
    cures: tuple[Advice, ...] = ()
    if born:
        what = f": {born['name']} is made by {born['op']}" if born["name"] else f": {born['op']}"
        values = f" makes {_number(born['result'])} of {_values(born['values']) or 'nothing'}"
        says += what + (f", which{values}" if born["name"] else values)
        says += _line(born) if born["line"] != event["line"] else ""
        evidence |= {"made by": born["op"], **born["values"]}
        cures = _cure(born["op"])
    return Finding(Severity.broken, says, _where(event), evidence, try_next=cures, magnitude=7.0)


def _asked_for(event: Fact, evidence: dict[str, float | str]) -> Finding:
    """Say where an infinity that somebody put in came to count: the label's own score, a sum."""
    asked, *line = event["asked"]
    mask = f"as {asked or 'a mask'} left it"
    mask += _line({"line": line}) if line != event["line"] else ""
    if event["inner"].startswith("nll_loss") and event["index"]:
        sample, label = event["index"]
        says = (
            f"{event['op']} in {_place(event)} is infinite: sample {sample} has the label {label}, "
            f"and its score for {label} is -inf, {mask}"
        )
        evidence |= {"sample": float(sample), "label": float(label)}
        patch = "mask[torch.arange(len(y)), y] = False  # or drop the sample"
        advice = (Advice("unmask-the-label", patch),)
    else:
        says = f"{event['op']} in {_place(event)} adds up what is {event['result']}, {mask}"
        advice = (Advice("leave-out-the-mask", "x[~mask].mean()  # and not of all of x"),)
    says += _line(event)
    return Finding(Severity.broken, says, _where(event), evidence, try_next=advice, magnitude=7.0)


def _number(result: str) -> str:
    return {"nan": "NaN"}.get(result, result)


@detector("G004", "nonfinite-backward", needs=("nonfinite",), explains=AFTER)
def nonfinite_backward(record: Record) -> Iterator[Finding]:
    """The loss is finite and its gradient is not.

    What it looks at: the gradients of all parameters. When one is broken, the backward pass is run
    again with a hook on each node: the first that gets finite gradients and sends a broken one on
    is named, with the value it kept from the forward pass: a root at 0, acos at 1, a log of 0 whose
    result was masked. A gradient of 0 that arrives there says that a mask comes after the op:
    0 * inf is NaN, so that only masking its input helps.

    Why it matters: a guard on the loss does not see it, one step makes the weights NaN, and
    `clip_grad_norm_` spreads it to every parameter.

    When it is wrong: a gradient that only overflows where it is summed has no op to be blamed.

    What to try: eps inside the root, clamp off the pole, mask the input and not the output.

    References: pytorch#68425, jax#347 (the double where).
    """
    facts = record.facts["nonfinite"]
    event = facts["backward"]
    if not facts["gradients"] or facts["loss"]:
        return
    before = facts["forward"]
    if event.get("broken_before") and before:
        yield _broken_op(before, "backward")
    elif event:
        yield _broken_slope(event, facts["gradients"])
    else:
        says = (
            f"the gradients of {len(facts['gradients'])} parameters overflow where they are summed"
        )
        owners = [name.rpartition(".")[0] for name in facts["gradients"]]
        yield Finding(Severity.broken, says, tuple(dict.fromkeys(owners)), magnitude=6.0)


def _broken_op(event: Fact, where: str) -> Finding:
    """Say which op broke, in which module and line, and of which values."""
    op = event["op"]
    values = _values(event["values"])
    result = _number(event["result"])
    if event["all_masked"]:
        says = f"a row of {op} in {_place(event)} is masked throughout: softmax over nothing is NaN"
    elif _is_empty_mean(event):
        at = _index(event["index"])
        says = f"{op} in {_place(event)} divides 0 by 0 at {at}, as does the mean over a row whose "
        says += "mask is all zero, or a row of zeros over its norm"
    else:
        says = f"{op} in {_place(event)} makes {result} of {values or 'finite numbers'}"
        says += f" at {_index(event['index'])}" if event["index"] else ""
    says += _line(event)
    if where == "backward":
        says += "; the loss leaves it out, but its gradient is 0 * NaN"
    return Finding(
        Severity.broken,
        says,
        _where(event),
        {"op": op, "result": str(event["result"]), **event["values"]},
        try_next=_cure(op if not event["all_masked"] else "softmax"),
        magnitude=7.0,
    )


def _broken_slope(event: Fact, gradients: Sequence[str]) -> Finding:
    op = event["op"]
    values = _values(event["values"])
    says = f"the slope of {op} in {_place(event)} is infinite" + (f" at {values}" if values else "")
    says += f", element {_index(event['index'])}" if event["index"] else ""
    says += _line(event) + f": the loss is finite, {len(gradients)} gradients are not"
    cures = _cure(op)
    if event["arriving"] == 0:
        says += "; a mask behind it cannot undo it, since 0 * inf is NaN: mask its input"
        patch = "safe = torch.where(ok, x, torch.ones_like(x))\ny = torch.where(ok, f(safe), 0)"
        cures = (Advice("mask-the-input", patch), *cures)
    evidence = {"op": op, "node": event["node"], **event["values"]}
    return Finding(Severity.broken, says, _where(event), evidence, try_next=cures, magnitude=6.0)


def _where(event: Fact) -> tuple[str, ...]:
    """The module of an op, the layer that feeds it where the op stands in the root, or the loss.

    An op of the root that a row without anything unmasked broke is the fault of no layer: data.
    """
    if event["module"] is None:
        return ("loss",)
    if not event["module"] and (event.get("all_masked") or _is_empty_mean(event)):
        return ("data",)
    names = (event["module"], event.get("feeder", ""))
    return tuple(dict.fromkeys(name for name in names if name)) or ("",)


def _is_empty_mean(event: Fact) -> bool:
    """Whether a sum over nothing was divided by its count: 0 / 0, the count without a gradient."""
    values, bare = event["values"], event.get("bare", ())
    zeros = values.get("input") in ZEROS and values.get("other") in ZEROS
    divides = event.get("inner", "").startswith("div") and "other" in bare
    return zeros and divides and "input" not in bare and bool(event["index"])


def _place(event: Fact) -> str:
    return "the loss" if event["module"] is None else event["module"] or "the model's own forward"


def _line(event: Fact) -> str:
    file, number = event["line"]
    return f" ({file}:{number})" if file else ""


def _values(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _cure(op: str) -> tuple[Advice, ...]:
    for part, patch in CURES:
        if part in op:
            return (Advice(f"safe-{part}", patch),)
    return ()


@detector("G006", "norm-overflow", needs=("norm_overflow",), explains=("G401",))
def norm_overflow(record: Record) -> Iterator[Finding]:
    """Every gradient is finite, but its norm is not.

    What it looks at: each parameter's gradient, whose norm is computed here without overflow. torch
    sums squares in float32, which ends at a norm of 1.8e19, and returns the norm in the gradient's
    own dtype, which ends at 65504 in float16.

    Why it matters: `clip_grad_norm_` divides by the norm: by infinity, so that every gradient
    becomes exactly zero and nothing ever moves, without any error.

    When it is wrong: without clipping, the step is merely enormous.

    What to try: scale the loss or its targets down; find what explodes.

    References: measured on torch 2.13: elements of 3e19 (float32) or 4e4 (float16).
    """
    rows = record.facts["norm_overflow"]
    if not rows or record.facts["nonfinite"]["gradients"]:
        return
    worst = rows[0]
    owners = tuple(dict.fromkeys(row["name"].rpartition(".")[0] for row in rows))
    says = (
        f"the gradient of {worst['name']} is finite with a norm of 1e{worst['log_norm']:.1f}, "
        f"which overflows in {worst['dtype']} (limit 1e{worst['limit']:.1f}): clipping by norm "
        "would set all gradients to zero"
    )
    evidence = {"log10_norm": worst["log_norm"], "limit": worst["limit"]}
    patch = "loss = loss / loss.detach()  # only to see it train; then find what makes it so large"
    advice = (Advice("scale-the-loss", patch),)
    where = (*owners, "loss")
    yield Finding(
        Severity.broken, says, where, evidence, try_next=advice, magnitude=worst["log_norm"]
    )


def _is_half(event: Fact) -> bool:
    return bool(event["overflow"])


@detector(
    "G007",
    "half-precision-overflow",
    needs=("nonfinite", "half"),
    explains=("G101", "G103", "G401", "G402"),
)
def half_precision_overflow(record: Record, *, headroom: float = 10.0) -> Iterator[Finding]:
    """An activation beyond, or close to, the largest number of half precision.

    What it looks at: the largest magnitude that each module puts out in float16 or bfloat16 against
    the largest number of that dtype (65504 in float16). Less than a factor `headroom` of 10 is a
    risk: chosen by us, since activations of transformers grow about tenfold in training (T5's wo
    reaches 66246, transformers#5651). Attention scores are left out: their masks are large on
    purpose.

    Why it matters: one number above becomes infinite, the next norm makes NaN of it. A lower lr
    only delays that.

    When it is wrong: a large negative constant used as a mask elsewhere than before a softmax.

    What to try: bfloat16, whose range is float32's; or this one module in float32; or smaller
    weights.

    References: transformers#5651, #10956; nanoGPT#167; DebugUnderflowOverflow, transformers#11274.
    """
    facts = record.facts["nonfinite"]
    if facts["forward"] and _is_half(facts["forward"]) and _matters(facts):
        yield _overflowed(facts["forward"])
        return
    tight = [row for row in record.facts["half"] if 1 / headroom < row["share"] < float("inf")]
    if not tight:
        return
    worst = tight[0]
    names = tuple(dict.fromkeys(row["module"] for row in tight if row["module"])) or ("",)
    says = (
        f"{worst['op']} in {layers(names[:1])} reaches {worst['peak']:.4g} in {worst['dtype']}, "
        f"{worst['share']:.0%} of its largest number {worst['limit']:.5g}: others will overflow"
    )
    evidence = {"peak": worst["peak"], "share": worst["share"], "dtype": worst["dtype"]}
    yield Finding(Severity.risk, says, names, evidence, try_next=_wider(names[0]), magnitude=1.0)


def _overflowed(event: Fact) -> Finding:
    says = (
        f"{event['op']} in {_place(event)} overflows {event['dtype']}: it makes {event['result']} "
        f"of {_values(event['values']) or 'finite numbers'}, more than {LARGEST[event['dtype']]}, "
        f"the largest number of {event['dtype']} (half precision)" + _line(event)
    )
    where = _where(event)
    evidence = {"op": event["op"], "dtype": event["dtype"], **event["values"]}
    return Finding(Severity.broken, says, where, evidence, try_next=_wider(where[0]), magnitude=7.0)


def _wider(name: str) -> tuple[Advice, ...]:
    island = (
        f"layer = model.get_submodule({name!r}).float()\n"
        "with torch.autocast(device_type, enabled=False):\n"
        "    h = layer(h.float())  # where it is called"
    )
    return (
        Advice("bfloat16", "torch.autocast(device_type, torch.bfloat16)"),
        Advice("float32-island", island),
        Advice(
            "float32-weights",
            "model.float()  # and float16 by torch.autocast with torch.amp.GradScaler() alone",
        ),
    )


@detector("G009", "poisoned-buffer", needs=("nonfinite",), explains=GIVEN)
def poisoned_buffer(record: Record) -> Iterator[Finding]:
    """A buffer, such as a batch norm's running mean, is NaN or infinite.

    What it looks at: every buffer. One whose broken values are all -inf is a mask and left alone,
    unless it holds running statistics.

    Why it matters: training uses the statistics of the batch and looks fine, evaluation uses the
    buffer and is NaN; no number of clean batches heals it, since a running average of infinity
    stays infinite. Steps that a GradScaler skips write to buffers all the same.

    When it is wrong: a buffer of +inf or NaN that is never read, or meant as a mark.

    What to try: reset the statistics, then find the batch that did it.

    References: pytorch#90342, #88474, #115500.
    """
    facts = record.facts["nonfinite"]
    # running statistics may have been broken by this very pass
    through = bool(facts["forward"] or facts["data"] or facts["parameters"])
    rows = facts["buffers"]
    yield from poisoned([row for row in rows if not (through and "running_" in row["name"])])


def poisoned(rows: Sequence[Fact]) -> Iterator[Finding]:
    """Tell of buffers that are broken, unless they look like masks."""
    bad = [row for row in rows if row["count"] > row["minus"] or "running_" in row["name"]]
    if not bad:
        return
    owners = tuple(dict.fromkeys(row["name"].rpartition(".")[0] for row in bad))
    says = f"{bad[0]['count']} of {bad[0]['numel']} numbers of {bad[0]['name']} {_be(bad[0])} "
    says += "NaN or infinite: training may look fine, evaluation will not"
    patch = f"model.get_submodule({owners[0]!r}).reset_running_stats()"
    evidence = {"count": float(bad[0]["count"]), "buffers": float(len(bad))}
    advice = (Advice("reset-statistics", patch),)
    yield Finding(Severity.broken, says, owners, evidence, try_next=advice, magnitude=5.0)

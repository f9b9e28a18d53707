"""Words that several detectors use: lists of layers, factors, and lines to paste."""

from __future__ import annotations

from collections.abc import Container, Sequence


def layers(names: Sequence[str], *, most: int = 3) -> str:
    """Name a few layers in full and many by the first and the last."""
    shown = [name or "the model" for name in names]
    if len(shown) <= most:
        return ", ".join(shown)
    return f"{len(shown)} layers from {shown[0]} to {shown[-1]}"


def times(decades: float) -> str:
    """Say a factor: 0.5 decades are '3.2 times'."""
    return f"{10 ** abs(decades):.2g} times" if abs(decades) < 3 else f"1e{abs(decades):.0f} times"


def patch_multiply(names: Sequence[str], multiplier: float, bare: Container[str] = ()) -> str:
    """Lines that multiply the weights of the named modules, or of `bare` parameters."""
    listed = ", ".join(repr(name) for name in names)
    alone = all(name in bare for name in names)
    weight = "model.get_parameter(name)" if alone else "model.get_submodule(name).weight"
    return (
        "with torch.no_grad():\n"
        f"    for name in ({listed},):\n"
        f"        {weight}.mul_({multiplier:.4g})"
    )

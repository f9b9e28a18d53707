"""Draw a figure as SVG and PNG; matplotlib is imported here and nowhere else."""

from __future__ import annotations

from pathlib import Path

from steadygrad.lab.experiment import Figure


def draw(figure: Figure, title: str, directory: Path) -> None:
    """Write figure.svg and figure.png. Raises ModuleNotFoundError with what to install."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"expected matplotlib to draw {directory / 'figure.svg'}, it is not installed: "
            "pip install 'steadygrad[lab]'"
        ) from error
    with rc_context({"svg.hashsalt": "steadygrad", "font.size": 9}):  # the same file each time
        canvas = Canvas(figsize=(6.4, 4.0), layout="constrained")
        axes = canvas.subplots()
        for curve in figure.curves:
            style = "--" if curve.theory else "o-" if len(curve.x) <= 40 else "-"
            axes.plot(curve.x, curve.y, style, label=curve.name, markersize=3, linewidth=1.2)
        axes.set(xlabel=figure.x, ylabel=figure.y)
        axes.set_xscale("log" if "x" in figure.log else "linear")
        axes.set_yscale("log" if "y" in figure.log else "linear")
        axes.set_title(title, fontsize=8, wrap=True)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
        canvas.savefig(directory / "figure.svg", metadata={"Date": None})
        canvas.savefig(directory / "figure.png", dpi=120)

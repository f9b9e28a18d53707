"""Tell what a target is, and hand what it holds to whoever wants to look."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from pathlib import Path

from steadygrad.launch.build import built, near
from steadygrad.launch.script import Then, run
from steadygrad.launch.training import refuse_notebook
from steadygrad.launch.zoo import hugging_face, timm_model
from steadygrad.replay.captured import CannotLook, Captured


def launch(
    target: str,
    arguments: Sequence[str],
    then: Then,
    *,
    described: Sequence[str] = (),
    seed: int = 0,
) -> int:
    """Capture what a target holds and return `then(captured)`.

    A target is `hf:NAME`, `timm:NAME`, `module:attribute`, `file.py:attribute`, or a script with
    its arguments. `described` are inputs for a build that returns a model alone.
    """
    if is_script(target):
        _expect_file(target)
        return run(target, arguments, then)
    if arguments:
        raise CannotLook(
            f"expected no arguments after {target}, got {' '.join(arguments)}: options of "
            "steadygrad stand before the target"
        )
    return then(_without_script(target, described, seed))


def is_script(target: str) -> bool:
    """Whether a target is a file to run, and not something to be imported or built."""
    _, colon, attribute = target.rpartition(":")
    parts = attribute.split(".")
    named = all(part.isidentifier() and not keyword.iskeyword(part) for part in parts)
    return not target.startswith(("hf:", "timm:")) and not (colon and named)


def _without_script(target: str, described: Sequence[str], seed: int) -> Captured:
    kind, _, name = target.partition(":")
    if kind == "hf":
        return hugging_face(name, seed)
    if kind == "timm":
        return timm_model(name, seed)
    return built(target, described, seed)


def _expect_file(target: str) -> None:
    path = Path(target)
    if path.is_file():
        refuse_notebook(path)
        return
    if path.is_dir():
        raise CannotLook(f"expected a script, got the directory {target}: name the file in it")
    raise CannotLook(
        f"expected a script, module:function, hf:NAME or timm:NAME, got {target}, which does not "
        f"exist{near(path)}"
    )

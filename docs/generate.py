"""Write docs/findings/: a page for each detector, which is its docstring, and the list of all."""

from __future__ import annotations

import shutil
from pathlib import Path

from steadygrad.core.finding import Detector
from steadygrad.detectors import EVERY

FINDINGS = Path(__file__).parent / "findings"

HEAD = """# Findings

Names say the illness. Codes are stable. `steadygrad explain CODE` prints the same pages.

| code | name | what it looks at |
| --- | --- | --- |
"""


def main() -> None:
    """Replace all pages, so that none outlives its detector."""
    shutil.rmtree(FINDINGS, ignore_errors=True)
    FINDINGS.mkdir()
    ordered = sorted(EVERY, key=lambda one: one.code)
    (FINDINGS / "index.md").write_text(HEAD + "".join(map(row, ordered)), encoding="utf-8")
    for one in ordered:
        (FINDINGS / f"{one.code}.md").write_text(page(one), encoding="utf-8")


def row(detector: Detector) -> str:
    """One line of the list."""
    opening = " ".join(detector.page.partition("\n\n")[0].split()).replace("|", "\\|")
    return f"| [{detector.code}]({detector.code}.md) | {detector.name} | {opening} |\n"


def page(detector: Detector) -> str:
    """A detector's page: title, docstring, and what it needs and explains."""
    needs = ", ".join(f"`{need}`" for need in detector.needs) or "nothing"
    explains = ", ".join(map(link, detector.explains)) or "nothing else"
    return (
        f"# {detector.code} {detector.name}\n\n{detector.page}\n\n"
        f"---\n\nNeeds: {needs}. Explains: {explains}.\n"
    )


def link(code: str) -> str:
    """A link to another finding's page, where there is one."""
    known = any(one.code == code for one in EVERY)
    return f"[{code}]({code}.md)" if known else code


if __name__ == "__main__":
    main()

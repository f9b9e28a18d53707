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
    codes = {code: sharing(code) for code in sorted({one.code for one in EVERY})}
    rows = [row(one) for mine in codes.values() for one in mine]
    (FINDINGS / "index.md").write_text(HEAD + "".join(rows), encoding="utf-8")
    for code, mine in codes.items():
        text = "\n".join(page(one, second=place > 0) for place, one in enumerate(mine))
        (FINDINGS / f"{code}.md").write_text(text, encoding="utf-8")


def sharing(code: str) -> list[Detector]:
    """All detectors with this code: before the first step, of a guard, and over many steps."""
    return [one for one in EVERY if one.code == code]


def row(detector: Detector) -> str:
    """One line of the list."""
    opening = " ".join(detector.page.partition("\n\n")[0].split()).replace("|", "\\|")
    return f"| [{detector.code}]({detector.code}.md) | {detector.name} | {opening} |\n"


def page(detector: Detector, *, second: bool) -> str:
    """A detector's page: title, docstring, and what it needs and explains."""
    over = " over many steps" if second else ""
    needs = ", ".join(f"`{need}`" for need in detector.needs) or "nothing"
    explains = ", ".join(map(link, detector.explains)) or "nothing else"
    return (
        f"# {detector.code} {detector.name}{over}\n\n{detector.page}\n\n"
        f"---\n\nNeeds: {needs}. Explains: {explains}.\n"
    )


def link(code: str) -> str:
    """A link to another finding's page, where there is one."""
    known = any(one.code == code for one in EVERY)
    return f"[{code}]({code}.md)" if known else code


if __name__ == "__main__":
    main()

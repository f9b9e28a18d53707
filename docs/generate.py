"""Write docs/findings/ and docs/remedies/: a page for each, which is its docstring, and lists."""

from __future__ import annotations

import shutil
from pathlib import Path

from steadygrad.core.finding import Detector
from steadygrad.detectors import EVERY
from steadygrad.remedies.catalogue import REMEDIES
from steadygrad.remedies.remedy import Remedy

FINDINGS = Path(__file__).parent / "findings"
CURES = Path(__file__).parent / "remedies"

LIST = """# Remedies

`steadygrad cure` tries them on a training; `steadygrad explain NAME` prints the same pages.

| name | kind | cures | what it does |
| --- | --- | --- | --- |
"""

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

    shutil.rmtree(CURES, ignore_errors=True)
    CURES.mkdir()
    lines = [line(one) for one in REMEDIES]
    (CURES / "index.md").write_text(LIST + "".join(lines), encoding="utf-8")
    for one in REMEDIES:
        text = f"# {one.name}\n\n{one.explains}\n\n---\n\nCures: {linked(one)}.\n"
        (CURES / f"{one.name}.md").write_text(text, encoding="utf-8")


def line(one: Remedy) -> str:
    """One line of the list of remedies."""
    opening = " ".join(one.explains.partition("\n\n")[0].split()).replace("|", "\\|")
    return f"| [{one.name}]({one.name}.md) | {one.kind} | {linked(one)} | {opening} |\n"


def linked(one: Remedy) -> str:
    """Links to the findings that a remedy is for."""
    return ", ".join(f"[{code}](../findings/{code}.md)" for code in one.cures)


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

"""The README's first example prints what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_first_example_prints_its_output() -> None:
    found = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    printed = subprocess.run(
        [sys.executable, "-c", found[1]], capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == found[2].split()

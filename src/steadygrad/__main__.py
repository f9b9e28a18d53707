"""Run the command line as `python -m steadygrad`."""

from __future__ import annotations

from steadygrad.cli import main

if __name__ == "__main__":  # worker processes import this module again
    main()

"""The first answer of an installed ayaedge, and nothing else: `python first_answer.py`; not a test itself.

Needs the package alone, no test runner: a bare environment, a public CI and the release checklist run it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ayaedge import AyaVision, __version__

IMAGE = Path(__file__).parents[1] / "examples" / "pictures" / "six-cells.png"


def main() -> None:
    with AyaVision.load() as model:
        answer = model.ask("What number is at the bottom left?", images=[IMAGE]).text
    if answer != "2675":
        sys.exit(f"ayaedge {__version__} answers {answer!r} instead of 2675")
    sys.stdout.write(f"ayaedge {__version__} on Python {sys.version.split()[0]}: {answer}\n")


if __name__ == "__main__":
    main()

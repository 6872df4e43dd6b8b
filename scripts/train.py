"""Train a deep linear network and hold the run against the theory.

python scripts/train.py                                     the digits autoencoder
python scripts/train.py network.depth=5 method=rk4          other options
python scripts/train.py -m network.depth=2,3,5 seed=0,1     a sweep
python scripts/train.py resume=runs/digits/<run>            continue a run
python scripts/train.py experiment=brtw/fig01               a figure of a paper, all its runs
python scripts/train.py --help                              all options
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deeplin.runner.entry import launch

if TYPE_CHECKING:
    from deeplin.runner.experiments import Picture

# Packages of your own that hold what the files of conf/ name as `_target_`, beside deeplin.
MINE: tuple[str, ...] = ()


def draw(experiment: str, folders: Sequence[Path], into: Path) -> Picture | None:
    """The figure that scripts/reproduce.py has in its report, of these runs, in a folder."""
    from reproduction.pictures import drawn_from  # matplotlib and all figures: when one is drawn

    return drawn_from(experiment, folders, into)


if __name__ == "__main__":
    sys.exit(launch(MINE, draw))

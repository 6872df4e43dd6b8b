"""Train a deep linear network and hold the run against the theory.

python scripts/train.py                                     the digits autoencoder
python scripts/train.py network.depth=5 method=rk4          other options
python scripts/train.py -m network.depth=2,3,5 seed=0,1     a sweep
python scripts/train.py resume=runs/digits/<run>            continue a run
python scripts/train.py --help                              all options
"""

import sys

from deeplin.runner.entry import launch

# Packages of your own that hold what the files of conf/ name as `_target_`, beside deeplin.
MINE: tuple[str, ...] = ()

if __name__ == "__main__":
    sys.exit(launch(MINE))

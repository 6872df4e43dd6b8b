"""Train a deep linear network and hold the run against the theory.

python scripts/train.py                                     the digits autoencoder
python scripts/train.py network.depth=5 method=rk4          other options
python scripts/train.py -m network.depth=2,3,5 seed=0,1     a sweep
python scripts/train.py resume=runs/digits/<run>            continue a run
python scripts/train.py --help                              all options
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from deeplin.runner import cli, targets

# Packages of your own that hold what the files of conf/ name as `_target_`, beside deeplin.
MINE: tuple[str, ...] = ()
CONFIG = Path(__file__).resolve().parent.parent / "conf"


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def train(cfg: DictConfig) -> int:
    return cli.job(cfg)


if __name__ == "__main__":
    for package in MINE:
        targets.trust(package)
    sys.exit(cli.main(train, CONFIG, sys.argv[1:]))

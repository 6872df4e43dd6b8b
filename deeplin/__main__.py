"""Train a deep linear network and hold the run against the theory: `deeplin`, `python -m deeplin`.

deeplin                                     the digits autoencoder
deeplin network.depth=5 method=rk4          other options
deeplin -m network.depth=2,3,5 seed=0,1     a sweep
deeplin resume=runs/digits/<run>            continue a run
deeplin --help                              all options
"""

import sys

from deeplin.runner.entry import launch

__all__ = ["main"]


def main() -> int:
    """Run the command line; the exit status."""
    return launch()


if __name__ == "__main__":
    sys.exit(main())

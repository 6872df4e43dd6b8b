"""Equations that are no flow of a matrix, for tests of integrators."""

import torch

from deeplin.flows.contract import Flow


class PlainFlow(Flow):
    """A field on one trajectory; a subclass gives `velocity`."""

    def init_state(self, start, rank=None):
        return (start,)

    def end_to_end(self, y):
        return y[0].reshape(-1, 1)


class Growth(PlainFlow):
    """ẏ = y³: from y_0 at t = 1/(2y_0²) there is no solution any more."""

    autonomous = True

    def velocity(self, t, y):
        return (y[0] ** 3,)

    def end_to_end(self, y):
        return y[0][..., None]

    def start(self, *sizes):
        return (torch.tensor(sizes, dtype=torch.float64)[:, None],)


class Decay(Growth):
    """ẏ = −y."""

    def velocity(self, t, y):
        return (-y[0],)

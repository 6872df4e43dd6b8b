"""Equations that are no flow of a matrix, for tests of integrators."""

from deeplin.flows.contract import Flow


class PlainFlow(Flow):
    """A field on one trajectory; a subclass gives `velocity`."""

    def init_state(self, start, rank=None):
        return (start,)

    def end_to_end(self, y):
        return y[0].reshape(-1, 1)

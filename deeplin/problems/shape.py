"""The shape (m, n) of a problem's matrices, checked where it is set."""

from __future__ import annotations

from numbers import Integral

__all__ = ["Shape", "checked_shape"]


class Shape:
    """The attribute `shape` of a problem that has not set one, and the check of one that it sets.

    A class attribute `shape` of a subclass hides this; `Problem.__init_subclass__` checks that.
    """

    def __get__(self, problem: object | None, owner: type) -> tuple[int, int] | Shape:
        if problem is None:
            return self
        if "shape" not in vars(problem):
            raise TypeError(
                f"{owner.__name__} must say the shape of its matrices: write shape = (m, n) in "
                "the class, or set self.shape in __init__; it has none."
            )
        return vars(problem)["shape"]

    def __set__(self, problem: object, shape: object) -> None:
        vars(problem)["shape"] = checked_shape(shape, type(problem).__name__)


def checked_shape(shape: object, owner: str) -> tuple[int, int]:
    """The shape as a pair of integers. Raises: ValueError unless it is two positive ones."""
    if isinstance(shape, tuple | list) and len(shape) == 2:
        m, n = shape
        if all(isinstance(d, Integral) and not isinstance(d, bool) and int(d) >= 1 for d in (m, n)):
            return int(m), int(n)
    raise ValueError(
        f"shape of {owner} must be two positive integers (m, n); got {shape!r}: "
        "for instance shape = (20, 30)."
    )

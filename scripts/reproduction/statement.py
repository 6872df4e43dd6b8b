"""What a numbered statement of a paper is to the ledger."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r", ([ESC][0-9]+)$")


def label_of(source: str) -> str:
    """E1, S1, C1, … of an error, a slip, a caution; "" of a statement of the papers."""
    found = _LABEL.search(source)
    return found[1] if found else ""


@dataclass(frozen=True)
class Statement:
    """A statement, and the number that it is held to or the reason why there is none.

    `source` is the key that tests (`@pytest.mark.statement`) and claims of experiments use;
    `says` one plain sentence of what it claims; `checked` what is measured of it, and where the
    statement concerns almost all starts or every function, on which examples.
    """

    source: str
    says: str
    checked: str = ""
    unchecked: str | None = None

    def __post_init__(self):
        if bool(self.checked) == bool(self.unchecked):
            raise ValueError(f"{self.source} must have either `checked` or `unchecked`.")

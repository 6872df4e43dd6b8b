"""What a device can do at most: bytes and operations a second, measured in the same run."""

from __future__ import annotations

import torch

from benchmarks import seconds

# Numbers of a vector, more than caches hold; sides of a square product.
_NUMBERS = 2**24
_SIDES = {"cpu": 1024, "cuda": 8192}


def limits(device: torch.device) -> dict[str, float]:
    """Bytes a second of a triad a = b + s·c; operations a second of a large product, by dtype.

    The triad reads two vectors of float64 and writes one, 24 bytes a number.
    """
    a, b, c = (torch.ones(_NUMBERS, dtype=torch.float64, device=device) for _ in range(3))
    found = {"triad": 24 * _NUMBERS / seconds(lambda: torch.add(b, c, alpha=3.0, out=a), 10)}
    n = _SIDES[device.type]
    for dtype in (torch.float64, torch.float32):
        A, out = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(2))
        name = str(dtype).removeprefix("torch.")
        found[name] = 2 * n**3 / seconds(lambda A=A, out=out: torch.mm(A, A, out=out), 3)
    return found


def named(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return "the processor, one thread"


def told(device: torch.device, found: dict[str, float]) -> str:
    """The limits in a line."""
    products = ", ".join(
        f"{rate / 1e9:.3g} Gflop/s in {name}" for name, rate in found.items() if name != "triad"
    )
    return f"{named(device)}: {found['triad'] / 1e9:.3g} GB/s (triad), {products} (one product)"

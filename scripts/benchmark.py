"""Named measurements, each against a bound: a table on the screen, a JSON file beside the runs.

    python scripts/benchmark.py                  all of them, but those that must be named
    python scripts/benchmark.py adam-memory      some
    python scripts/benchmark.py --device cuda    on a GPU
    python scripts/benchmark.py --list

A line is a function that returns one number, registered with its unit and its bound; what must not
share a process with anything else runs in a fresh one. Above the table stand the limits of the
device, measured in the same run. What is of the processor alone says why.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from benchmarks import (
    CPU,
    LINES,
    Line,
    completion,
    flows,
    large,
    limits,
    manifolds,
    optimizers,
    processes,
    ratings,
    stiff,
    streams,
)
from threadpoolctl import threadpool_limits

from deeplin.runner.devices import check_device

# Importing them registers their lines.
SUBJECTS = (manifolds, flows, stiff, completion, large, optimizers, ratings, streams, processes)


def measured(entry: Line, device: torch.device) -> float:
    if not entry.alone:
        torch.set_num_threads(1)
        with threadpool_limits(1):  # NumPy's, which the peers use
            return entry.on(device)
    child = subprocess.run(
        [sys.executable, __file__, "--child", entry.name, "--device", str(device)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(child.stdout.strip().splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="lines to measure; all when none is given")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda, cuda:1")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmark.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        check_device(options.device)
        device = torch.device(options.device)
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda; got {options.device}.")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", 0)
    except ValueError as error:
        parser.error(str(error))
    if options.child:
        print(LINES[options.child].on(device))
        return 0
    unknown = sorted(set(options.names) - set(LINES))
    if unknown:
        parser.error(f"names must be among {', '.join(LINES)}; got {', '.join(unknown)}.")
    if options.list:
        for entry in LINES.values():
            print(f"{entry.name:<20}{(entry.measure.__doc__ or '').splitlines()[0]}")
        return 0
    results = []
    torch.set_num_threads(1)
    most = limits.limits(device)
    print(limits.told(device, most), flush=True)
    for name in options.names or [key for key, entry in LINES.items() if not entry.named]:
        entry = LINES[name]
        fields = {k: v for k, v in asdict(entry).items() if k != "measure"}
        if entry.processor and device != CPU:
            results.append({**fields, "value": None, "ok": None})
            print(f"{name:<20}{'':>10} of the processor alone: {entry.processor}", flush=True)
            continue
        value = measured(entry, device)
        results.append({**fields, "value": value, "ok": entry.holds(value)})
        verdict = "ok" if entry.holds(value) else "MISSED"
        print(f"{name:<20}{value:>10.3g} {entry.unit:<14}{entry.bound:<10}{verdict}", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": limits.named(device),
        "limits": most,
    }
    options.json.write_text(json.dumps({"machine": machine, "lines": results}, indent=2) + "\n")
    return 1 if any(result["ok"] is False for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

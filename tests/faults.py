"""Runs that are killed, or find their disk full, at a chosen system call; many a second.

`Server` starts one process that has imported everything, with `faults.c` loaded before libc. For
each request it forks one child per job, lets them go at the same moment, and answers how they
ended. What runs there is this file as a program.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MOMENTS = (0, 1, 2)  # before the call, after it, in the middle of what it writes


class Server:
    """Runs jobs, each {"words": […], "folder": …, "call": n, "moment": 0, "room": bytes, …}."""

    def __init__(self, folder: Path, *words: str):
        library = folder / "faults.so"
        command = [os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC", "-o", str(library)]
        subprocess.run([*command, str(HERE / "faults.c"), "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # or the first run writes more than others
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "faults.py"), *words],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def _answer(self):
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server died"
        return json.loads(line)

    def __call__(self, *jobs: dict) -> list[dict]:
        """How each of some jobs, run at the same time, ended: its status, calls and output."""
        assert self._process.stdin is not None
        print(json.dumps(jobs), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def compiler() -> bool:
    found = shutil.which(os.environ.get("CC", "cc").split()[0])
    return sys.platform == "linux" and found is not None


# -- the server ------------------------------------------------------------------------------------


def serve(common: list[str]) -> None:
    import torch
    from hydra import compose, initialize_config_dir

    import deeplin.runner.cli  # its resolvers stand in the configurations
    from deeplin.runner.run import run

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    faults = ctypes.CDLL(None)
    faults.faults_arm.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_long]
    faults.faults_calls.restype = ctypes.c_long
    configurations: dict[tuple[str, ...], object] = {}

    def configured(words: list[str]):
        key = tuple(words)
        if key not in configurations:
            configurations[key] = compose("train", [*common, *words])
        return configurations[key]

    def child(cfg, job: dict, gate: int, end: int) -> None:
        """Runs one job; never returns."""
        os.read(gate, 1)
        time.sleep(job.get("delay", 0.0))
        status, said = 2, ""
        faults.faults_arm(job.get("call", -1), job.get("moment", 0), job.get("room", -1))
        try:
            status = run(cfg, Path(job["folder"]), draw=job.get("draw", False))
        except (ValueError, TypeError, OSError) as error:
            said = str(error)
        except BaseException as error:
            status, said = 99, repr(error)
        calls = faults.faults_calls()
        faults.faults_arm(-1, 0, -1)
        os.write(end, json.dumps({"status": status, "calls": calls, "said": said}).encode())
        os._exit(0)

    with initialize_config_dir(version_base="1.3", config_dir=str(HERE.parent / "conf")):
        assert deeplin.runner.cli
        with tempfile.TemporaryDirectory() as folder:  # what is imported late is imported here
            run(configured(["method.t1=0.1"]), Path(folder, "run"), draw=True)
            words = ["manifold=fixed_rank", "method=cg", "method.t1=1"]
            run(configured(words), Path(folder, "other"), draw=False)
        print(json.dumps("ready"), file=answers, flush=True)
        for line in sys.stdin:
            started = []
            gate, opened = os.pipe()
            for job in json.loads(line):
                cfg = configured(job["words"])
                end, written = os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.close(opened)
                    child(cfg, job, gate, written)
                os.close(written)
                started.append((pid, end))
            os.close(gate)
            os.write(opened, b"x" * len(started))
            os.close(opened)
            ends = []
            for pid, end in started:
                with os.fdopen(end, "rb") as file:
                    told = file.read()
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                killed = code == -signal.SIGKILL
                ends.append(json.loads(told) if told else {"status": code, "killed": killed})
            print(json.dumps(ends), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])

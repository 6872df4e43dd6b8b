"""A stand-in for Slurm's commands, called by their names: jobs run here, all at once.

Enough for submitit: `sbatch` of an array, `srun`, and `sacct`, which says what still runs.
"""

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct")


def installed(folder: Path) -> dict[str, str]:
    """The environment in which the commands are found; what runs stands in files of the folder."""
    folder.mkdir(exist_ok=True)
    for name in COMMANDS:
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "SLURM_STAND_IN": str(folder)}


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    found = re.search(r"--array='?0-(\d+)", text)
    assert found is not None, text
    job = str(os.getpid())
    for task in map(str, range(int(found[1]) + 1)):
        told = {"ARRAY_JOB_ID": job, "ARRAY_TASK_ID": task, "JOB_ID": f"{job}{task}"}
        told |= {"NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0", "PROCID": "0", "LOCALID": "0"}
        begun = subprocess.Popen(
            ["bash", script],
            env=os.environ | {f"SLURM_{name}": value for name, value in told.items()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        Path(os.environ["SLURM_STAND_IN"], f"{job}_{task}.pid").write_text(str(begun.pid))
    print(f"Submitted batch job {job}")


def srun(*words: str) -> None:
    rest = list(words)
    while rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag in ("--output", "--error"):
            file = rest.pop(0)
            for mark, name in {"%A": "ARRAY_JOB_ID", "%a": "ARRAY_TASK_ID", "%t": "PROCID"}.items():
                file = file.replace(mark, os.environ[f"SLURM_{name}"])
            # submitit makes it once it knows the job's number; Slurm begins no job so soon.
            while not Path(file).parent.exists():
                time.sleep(0.01)
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2 - (flag == "--output"))
    os.execvp(rest[0], rest)


def sacct() -> None:
    print("JobID|State|NodeList")
    for file in Path(os.environ["SLURM_STAND_IN"]).glob("*.pid"):
        stands = Path("/proc", file.read_text(), "stat")
        runs = stands.exists() and stands.read_text().rsplit(")", 1)[1].split()[0] != "Z"
        print(f"{file.stem}|{'RUNNING' if runs else 'COMPLETED'}|here")


if __name__ == "__main__":
    if sys.argv[1] == "sbatch":
        sbatch(sys.argv[-1])
    elif sys.argv[1] == "srun":
        srun(*sys.argv[2:])
    else:
        sacct()

"""Compiled code is built once per machine, kept where only the user writes, and never trusted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runner import needs_compiler

from deeplin.compiled import build
from deeplin.compiled.build import cache_folder, library

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's"),
]
SOURCE = "int answer(void) { return ANSWER; }\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A cache of its own and a compiler that writes a line each time that it is called."""
    real = shutil.which(os.environ.get("CC", "cc").split()[0])
    script = tmp_path / "counting-cc"
    script.write_text(f'#!/bin/sh\necho called >> {tmp_path}/calls\nexec {real} "$@"\n')
    script.chmod(0o755)
    (tmp_path / "answer.c").write_text(SOURCE)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def calls(machine: Path) -> int:
    log = machine / "calls"
    return len(log.read_text().splitlines()) if log.exists() else 0


def answer(machine: Path, value: int = 42) -> int:
    return library(machine / "answer.c", [f"-DANSWER={value}"]).answer()


def command(machine: Path) -> list[str]:
    """The same in a process of its own, which need not import torch for it."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(build.__file__).parent)!r});"
        "from pathlib import Path; import build;"
        f"print(build.library(Path({str(machine / 'answer.c')!r}), ['-DANSWER=42']).answer(),"
        "build.cache_folder())"
    )
    return [sys.executable, "-c", code]


def elsewhere(machine: Path) -> list[str]:
    """What another process answers, and the folder in which it keeps code."""
    done = subprocess.run(command(machine), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def kept(machine: Path) -> list[Path]:
    return sorted((machine / "cache" / "deeplin").glob("*.so"))


def test_a_second_process_calls_no_compiler(machine):
    assert answer(machine) == 42
    assert calls(machine) == 1
    assert elsewhere(machine) == ["42", str(machine / "cache" / "deeplin")]
    assert calls(machine) == 1
    folder = machine / "cache" / "deeplin"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.suffix for path in folder.iterdir()) == [".sha256", ".so"], "no leavings"


def test_what_changes_the_code_changes_the_key(machine, monkeypatch):
    assert (answer(machine, 1), answer(machine, 2)) == (1, 2)
    (machine / "answer.c").write_text(SOURCE.replace("ANSWER;", "ANSWER + 10;"))
    assert answer(machine, 1) == 11
    monkeypatch.setenv("CC", f"{os.environ['CC']} -O1")
    assert answer(machine, 1) == 11
    assert calls(machine) == len(kept(machine)) == 4
    with (machine / "counting-cc").open("a") as file:  # another version of the compiler
        file.write("# newer\n")
    assert answer(machine, 1) == 11
    assert calls(machine) == 5


def test_a_header_is_part_of_the_code(machine):
    source, header = machine / "told.c", machine / "told.h"
    source.write_text('#include "told.h"\nint answer(void) { return ANSWER; }\n')
    for value in (41, 42):
        header.write_text(f"#define ANSWER {value}\n")
        assert library(source, [], headers=[header]).answer() == value
    assert calls(machine) == 2


def test_another_processor_has_code_of_its_own(machine, monkeypatch):
    assert answer(machine) == 42
    monkeypatch.setattr("deeplin.compiled.build._processor", lambda: "another one")
    assert answer(machine) == 42
    assert len(kept(machine)) == 2


@pytest.mark.parametrize("content", [b"", b"\x7fELF nonsense", None])
def test_a_damaged_library_is_built_anew(machine, content):
    elsewhere(machine)
    (path,) = kept(machine)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert elsewhere(machine)[0] == "42"
    assert calls(machine) == 2
    assert path.stat().st_size == len(whole)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_in_which_others_write_is_not_used(machine, mode):
    elsewhere(machine)
    folder = machine / "cache" / "deeplin"
    folder.chmod(mode)
    value, used = elsewhere(machine)
    assert value == "42"
    assert used != str(folder)
    assert not Path(used).exists(), "what one process made for itself it takes with it"
    assert calls(machine) == 2


def test_neither_is_a_link_nor_a_parent_open_to_all_nor_a_library_that_others_may_write(machine):
    folder = machine / "cache" / "deeplin"
    assert answer(machine) == 42
    (path,) = kept(machine)
    path.chmod(0o777)
    assert answer(machine) == 42
    assert calls(machine) == 2
    (machine / "cache").chmod(0o777)
    assert cache_folder() != folder
    (machine / "cache").chmod(0o755)
    assert cache_folder() == folder
    folder.rename(machine / "other")
    folder.symlink_to(machine / "other")
    assert cache_folder() != folder


def test_where_no_folder_can_be_made_the_process_has_its_own(machine, monkeypatch):
    (machine / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine / "file"))
    assert answer(machine) == 42
    assert cache_folder().stat().st_mode & 0o777 == 0o700


def test_many_processes_at_once(machine):
    processes = [
        subprocess.Popen(command(machine), stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [process.communicate()[0].split()[0] for process in processes] == ["42"] * 4
    before = calls(machine)
    assert elsewhere(machine)[0] == "42"
    assert calls(machine) == before


@pytest.mark.parametrize("compiler", ["false", "true", "no-such-cc"])
def test_no_compiler_is_one_sentence_and_leaves_nothing(machine, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(
        ValueError, match=f"need a C compiler, cc or what CC names; got '{compiler}'"
    ):
        answer(machine)
    assert list((machine / "cache" / "deeplin").iterdir()) == []


def test_where_no_code_may_be_loaded_it_says_what_to_set(machine, monkeypatch):
    """As on disks mounted noexec."""

    def refused(path):
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(build.ctypes, "CDLL", refused)
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME or TMPDIR to one that allows it"):
        answer(machine)

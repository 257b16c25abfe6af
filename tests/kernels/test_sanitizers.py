"""The kernels under the compiler's address, undefined-behaviour and thread sanitizers."""

import shlex
import subprocess
from pathlib import Path

import pytest

from dsee.kernels.compile import FLAGS, SOURCES, X86, CompileError, compile_kernels, compiler
from dsee.kernels.library import Library

DRIVER = Path(__file__).with_name("sanitized.c")


def build(folder, *sanitizers):
    try:
        command = compiler()
    except CompileError as error:
        pytest.skip(str(error))
    import platform

    objects = []
    for source in [*sorted(SOURCES.glob("*.c")), DRIVER]:
        made = folder / f"{source.stem}.o"
        extra = X86.get(source.name, ()) if platform.machine() == "x86_64" else ()
        line = [*command, *FLAGS, "-O1", "-g", *extra, *sanitizers, f"-I{SOURCES}", "-c", str(source), "-o", str(made)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no sanitizers here: {done.stderr[-300:]}")
        objects.append(str(made))
    program = folder / "driver"
    line = [*command, *sanitizers, "-o", str(program), *objects, "-lpthread", "-lm"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no sanitizers here: {done.stderr[-300:]}")
    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    "sanitizers",
    [("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ("-fsanitize=thread",)],
    ids=["address and undefined", "thread"],
)
def test_nothing_is_read_or_written_out_of_place(tmp_path, sanitizers):
    program = build(tmp_path, *sanitizers)
    done = subprocess.run([str(program), "400"], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "largest difference" in done.stdout


@pytest.mark.slow
def test_a_compiler_older_than_an_instruction_set_leaves_it_out(tmp_path, monkeypatch):
    real = shlex.join(compiler())
    old = tmp_path / "old-cc"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *-mavxvnni*|*-mavx512*) echo "unknown option" >&2; exit 1;; esac\nexec {real} "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    made = Library(compile_kernels(tmp_path / "x.so"), "")
    assert made.paths
    assert not [path for path in made.paths if path.startswith("avx512") or path.endswith("vnni")]


def test_a_compiler_that_fails_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/nonexistent/cc")
    with pytest.raises(CompileError, match="/nonexistent/cc cannot be started"):
        compile_kernels(tmp_path / "x.so")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(CompileError, match=r"false .* failed"):
        compile_kernels(tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()


def test_without_any_compiler_that_is_said(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match="no C compiler found"):
        compiler()

"""Compile the kernels with the machine's C compiler. Imports the standard library alone: the build runs it so."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
LIBRARY = "_dsee_kernels.so"
#: Without value-changing liberties: NaN and infinity go through, and sums keep their order.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
#: Source -> what its instruction set needs, on x86-64.
X86 = {
    "path_avx2.c": ("-mavx2", "-mfma"),
    "path_avx2_vnni.c": ("-mavx2", "-mfma", "-mavxvnni"),
    "path_avx512.c": ("-mavx512f",),
    "path_avx512_vnni.c": ("-mavx512f", "-mavx512vl", "-mavx512vnni"),
}


class CompileError(Exception):
    """There is no C compiler here, or it failed."""


def compiler() -> list[str]:
    """Return the command of the C compiler: ``$CC``, else cc, gcc or clang.

    Raises:
        CompileError: there is none, or the system is none on which the kernels are built.
    """
    if not sys.platform.startswith(("linux", "darwin")):
        raise CompileError(f"the kernels are built on Linux and macOS, not on {sys.platform}")
    if given := os.environ.get("CC"):
        return shlex.split(given)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise CompileError("no C compiler found (looked for $CC, cc, gcc and clang)")


def compile_kernels(target: Path, flags: tuple[str, ...] = ()) -> Path:
    """Build the library, whole or not at all.

    Args:
        target: the file to write.
        flags: more flags for compiling and linking, as sanitizers need.

    Returns:
        The file.

    Raises:
        CompileError: no compiler, or it failed; says what it said.
    """
    command = compiler()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for source in sorted(SOURCES.glob("*.c")):
            made = Path(folder) / f"{source.stem}.o"
            extra = X86.get(source.name, ()) if x86 else ()
            try:
                _call([*command, *FLAGS, *extra, *flags, "-c", str(source), "-o", str(made)])
            except CompileError:
                # a compiler older than an instruction set leaves it out: without its flag the file is an empty path
                if not extra:
                    raise
                _call([*command, *FLAGS, *flags, "-c", str(source), "-o", str(made)])
            objects.append(str(made))
        built = Path(folder) / LIBRARY
        _call([*command, "-shared", *flags, "-o", str(built), *objects, "-lpthread", "-lm"])
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(built, aside)
        aside.replace(target)
    return target


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's compiler
    except OSError as error:
        raise CompileError(f"{command[0]} cannot be started: {error}") from error
    if done.returncode:
        raise CompileError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")


if __name__ == "__main__":
    compile_kernels(Path(__file__).parent / LIBRARY)

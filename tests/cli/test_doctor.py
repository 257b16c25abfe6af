"""``dsee doctor``: what this installation has, and what is missing."""

import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from dsee.cli import app, doctor
from dsee.kernels import library


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", "import dsee_command; dsee_command.main()", "doctor", *arguments],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_names_packages_and_kernels():
    found = CliRunner().invoke(app.app, ["doctor", "--json"])
    assert found.exit_code == 0
    facts = json.loads(found.stdout)
    import torch

    assert facts["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["kernels"]["compiled"] == (library() is not None)
    assert facts["kernels"]["why_not"] == ("" if library() else facts["kernels"]["why_not"])


def test_without_kernels_it_says_why_and_what_to_do():
    out = run(DSEE_KERNELS="off")
    assert "sparse kernels: none, they are switched off by DSEE_KERNELS=off. Sparse models run densely here." in out
    assert "Install a C compiler" not in out


def test_without_a_compiler_it_says_what_to_install():
    facts = doctor.facts()
    facts["kernels"] |= {"compiled": False, "why_not": "they were not compiled when dsee was installed"}
    assert "Install a C compiler" in doctor.text(facts)


def test_a_missing_package_is_named_with_its_extra():
    facts = doctor.facts()
    facts["packages"]["onnxruntime"] = None
    assert "missing; pip install 'dsee[onnx]' brings it" in doctor.text(facts)

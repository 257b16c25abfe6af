"""Entry point of the ``dsee`` command.

A module of its own beside the package: importing ``dsee`` loads torch, PEFT and transformers and takes seconds, and
``dsee --help`` should not. The package notices this module and leaves the loading to the verbs.
"""

import os
from collections.abc import MutableMapping

#: How often a thread of OpenMP (libgomp, which torch brings on Linux) looks whether the others are done before it
#: sleeps. Its own default is 300,000 while there is a core for each thread. With another program on one of those cores
#: a thread then spends whole time slices waiting for one that is not running: a training step of MiniLM on two threads
#: took 6.6 s beside one other process, 0.5 s alone; with 5,000 it takes 1.1 s and 0.5 to 0.6 s.
SPINS = "5000"


def share_cores(environment: MutableMapping[str, str]) -> None:
    """Let threads sleep while they wait, so that other programs on the machine do not stop this one.

    It has to be set before torch is loaded. What the user says about it stands.

    Args:
        environment: of this process and those it starts.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)


def main() -> None:
    """Run the command."""
    share_cores(os.environ)
    from dsee.cli.app import main as run

    run()

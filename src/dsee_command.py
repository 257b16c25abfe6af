"""Entry point of the ``dsee`` command.

A module of its own beside the package: importing ``dsee`` loads torch, PEFT and transformers and takes seconds, and
``dsee --help`` should not. The package notices this module and leaves the loading to the verbs.
"""


def main() -> None:
    """Run the command."""
    from dsee.cli.app import main as run

    run()

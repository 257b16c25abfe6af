"""Telling PEFT and transformers about dsee. Idempotent; ``import dsee`` calls it."""

from __future__ import annotations

from dsee.errors import DseeError

PEFT_VERSIONS = (">=0.21", "<0.23")


def register() -> None:
    """Put the DSEE tuner into PEFT's mappings and the cut models into transformers' Auto classes.

    Raises:
        DseeError: another package has taken the name, or PEFT is too old to save methods from outside.
    """
    import peft
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version
    from peft import mapping

    from dsee.update import DseeConfig, DseeModel, DseePeftType

    versions = SpecifierSet(",".join(PEFT_VERSIONS))
    if not versions.contains(Version(peft.__version__), prereleases=True):
        raise DseeError(
            f"dsee needs peft{versions}, found {peft.__version__}. Install it with: pip install 'peft{versions}'"
        )
    key = DseePeftType.DSEE
    taken = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(key)
    if taken is not None and taken is not DseeConfig:
        raise DseeError(
            f"Another package has registered the PEFT method 'DSEE' ({taken.__module__}); use only one of them."
        )
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[key] = DseeConfig
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[key] = DseeModel
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[key] = DseeModel.prefix

    from dsee.artifact.auto import register_auto_classes

    register_auto_classes()

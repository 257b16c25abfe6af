"""import dsee tells PEFT about the method, once, and never over someone else's."""

import peft
import pytest
from peft import mapping

import dsee
from dsee.registration import register

TABLES = ("PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING", "PEFT_TYPE_TO_PREFIX_MAPPING")


def entries():
    return [dict(getattr(mapping, table)) for table in TABLES]


def test_the_three_tables_know_the_method_under_its_plain_name():
    assert [table["DSEE"] for table in entries()] == [dsee.DseeConfig, dsee.DseeModel, "dsee_"]


def test_registering_again_changes_nothing():
    before = entries()
    register()
    register()
    assert entries() == before


def test_a_foreign_method_of_that_name_is_refused_and_left_in_place(monkeypatch):
    class Foreign:
        pass

    monkeypatch.setitem(mapping.PEFT_TYPE_TO_CONFIG_MAPPING, "DSEE", Foreign)
    before = entries()
    with pytest.raises(dsee.DseeError, match=f"Another package has registered .*'DSEE' \\({__name__}\\)"):
        register()
    assert entries() == before


@pytest.mark.parametrize("version", ["0.20.0", "0.23.0", "1.0"])
def test_a_peft_of_another_age_is_refused_with_the_command_that_helps(version, monkeypatch):
    monkeypatch.setattr(peft, "__version__", version)
    with pytest.raises(dsee.DseeError, match=f"found {version}.*pip install 'peft"):
        register()


@pytest.mark.parametrize("version", ["0.21.0", "0.21.2", "0.22.0.dev0", "0.22.1"])
def test_a_peft_in_range_is_welcome(version, monkeypatch):
    monkeypatch.setattr(peft, "__version__", version)
    before = entries()
    register()
    assert entries() == before

"""One flipped bit, in any file, at any place, is noticed before the model is built."""

import pytest
from artifact_tools import unevenly_cut
from hypothesis import given, settings
from hypothesis import strategies as st

import dsee
from conftest import adapted, tiny_bert
from dsee import ArtifactError
from dsee.steps import record

HASHED = ["README.md", "config.json", "model.safetensors", "adapter/adapter_config.json"]
HASHED += ["adapter/adapter_model.safetensors"]
FLIPS = settings(max_examples=80, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    model = adapted(unevenly_cut(tiny_bert()))
    record(model, "tune", steps=100, rate=1e-3)
    return dsee.save(model, tmp_path_factory.mktemp("flipped") / "out")


def _flip(path, place, bit):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)


PLACES = st.floats(0, 1, exclude_max=True)
BITS = st.integers(0, 7)


@FLIPS
@given(name=st.sampled_from(HASHED), place=PLACES, bit=BITS)
def test_a_flipped_bit_is_noticed_and_its_file_named(artifact, name, place, bit):
    path = artifact / name
    whole = path.read_bytes()
    try:
        _flip(path, place, bit)
        with pytest.raises(ArtifactError, match=path.name):
            dsee.load(artifact)
    finally:
        path.write_bytes(whole)


@FLIPS
@given(place=PLACES, bit=BITS)
def test_a_flipped_bit_in_the_manifest_is_noticed(artifact, place, bit):
    path = artifact / "dsee.json"
    whole = path.read_bytes()
    try:
        _flip(path, place, bit)
        with pytest.raises(ArtifactError, match=artifact.name):
            dsee.load(artifact)
    finally:
        path.write_bytes(whole)

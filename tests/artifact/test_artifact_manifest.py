"""A manifest is believed in nothing before it is checked."""

import json
import os

import pytest
from artifact_tools import edit_manifest, unevenly_cut

import dsee
from conftest import tiny_bert
from dsee import ArtifactError
from dsee.artifact import FORMAT, read_manifest

ENTRY = {"bytes": 1, "sha256": "0" * 64}


@pytest.fixture
def artifact(tmp_path):
    return dsee.save(unevenly_cut(tiny_bert()), tmp_path / "out")


def _set(key, value):
    def change(content):
        content[key] = value

    return change


def test_a_newer_format_names_both_versions_and_the_remedy(artifact):
    edit_manifest(artifact, lambda content: content.update(format=FORMAT + 1, dsee="9.0"))
    with pytest.raises(ArtifactError, match=rf"format {FORMAT + 1}, written by dsee 9\.0.*pip install --upgrade dsee"):
        dsee.load(artifact)


def test_a_newer_format_may_have_fields_that_this_one_does_not_know(artifact):
    edit_manifest(artifact, lambda content: content.update(format=FORMAT + 1, layout={"v": 2}, files="elsewhere"))
    with pytest.raises(ArtifactError, match="Upgrade"):
        dsee.load(artifact)


@pytest.mark.parametrize("value", ["1", "2", 1.0, 2.0, True, None, [], 0, -1, 1.5, "one"], ids=repr)
def test_a_format_that_is_no_known_number_is_refused(artifact, value):
    edit_manifest(artifact, _set("format", value))
    with pytest.raises(ArtifactError, match=r"dsee\.json|format"):
        dsee.load(artifact)


@pytest.mark.parametrize("field", ["format", "kind", "files"])
def test_a_manifest_without_a_necessary_field_is_refused(artifact, field):
    edit_manifest(artifact, lambda content: content.pop(field))
    with pytest.raises(ArtifactError, match=r"dsee\.json"):
        dsee.load(artifact)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "pickle"),
        ("kind", 1),
        ("files", []),
        ("files", {"config.json": {}}),
        ("files", {"config.json": {"bytes": -1, "sha256": "0" * 64}}),
        ("files", {"config.json": {"bytes": 1, "sha256": "short"}}),
        ("files", {"config.json": ENTRY | {"more": 1}}),
        ("history", "none"),
        ("history", ["step"]),
        ("structure", {"heads": "many"}),
        ("structure", [1]),
        ("facts", []),
        ("unknown", 1),
    ],
    ids=repr,
)
def test_a_field_of_the_wrong_shape_is_refused_by_name(artifact, field, value):
    edit_manifest(artifact, _set(field, value))
    with pytest.raises(ArtifactError, match=rf"dsee\.json is damaged: {field}"):
        dsee.load(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', "{'kind': 'model'}", "\x00", "NaN"], ids=repr)
def test_invalid_json_is_refused(artifact, text):
    (artifact / "dsee.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"dsee\.json"):
        dsee.load(artifact)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\x80abc", bytes(range(256))], ids=["utf-16", "utf-8", "noise"])
def test_bytes_that_are_no_text_are_refused(artifact, data):
    (artifact / "dsee.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"dsee\.json"):
        dsee.load(artifact)


@pytest.mark.parametrize("opening", ["[", '{"a":'], ids=["lists", "objects"])
def test_deeply_nested_json_is_refused(artifact, opening):
    (artifact / "dsee.json").write_text(opening * 200_000)
    with pytest.raises(ArtifactError, match=r"dsee\.json"):
        dsee.load(artifact)


def test_a_huge_manifest_is_refused_unread(artifact):
    os.truncate(artifact / "dsee.json", 2**34)
    with pytest.raises(ArtifactError, match=r"dsee\.json is larger than any manifest"):
        dsee.load(artifact)


@pytest.mark.parametrize(
    "number", ["1" + "0" * 4000, "-1" + "0" * 4000, "1" + "0" * 5000], ids=["long", "minus", "more"]
)
def test_a_number_without_end_is_refused(artifact, number):
    # Python itself refuses to read more than 4300 digits, and so far it reads them
    text = (artifact / "dsee.json").read_text()
    (artifact / "dsee.json").write_text(text.replace('"format": 1', f'"format": {number}'))
    with pytest.raises(ArtifactError):
        dsee.load(artifact)


@pytest.mark.parametrize("name", ["../outside", "../../etc/passwd", "adapter/../../outside", "{absolute}"])
def test_a_name_outside_the_folder_is_refused_without_looking_there(artifact, name):
    outside = artifact.parent / "outside"
    outside.write_text("x")
    name = name.format(absolute=outside)
    edit_manifest(artifact, lambda content: content["files"].update({name: ENTRY}))
    with pytest.raises(ArtifactError, match=r"dsee\.json names .* outside the folder"):
        dsee.load(artifact)


@pytest.mark.parametrize(
    "name",
    ["", ".", "a\0b", "\ud800", "x" * 300, "/".join("x" * 2500)],
    ids=["empty", "dot", "null byte", "half a character", "too long", "too deep"],
)
def test_a_name_that_no_file_can_have_is_refused(artifact, name):
    edit_manifest(artifact, lambda content: content["files"].update({name: ENTRY}))
    with pytest.raises(ArtifactError):
        dsee.load(artifact)


def test_a_link_that_leads_back_to_itself_is_refused(artifact):
    (artifact / "loop").symlink_to("loop")
    edit_manifest(artifact, lambda content: content["files"].update(loop=ENTRY))
    with pytest.raises(ArtifactError, match="loop"):
        dsee.load(artifact)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere: there is no such folder"):
        dsee.load(tmp_path / "nowhere")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"file: there is no such folder"):
        dsee.load(tmp_path / "file")


def test_an_empty_folder_is_not_an_artifact(tmp_path):
    with pytest.raises(ArtifactError, match=r"not a dsee artifact: it has no dsee\.json"):
        dsee.load(tmp_path)


def test_a_plain_transformers_folder_is_sent_to_its_own_loader(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "plain")
    with pytest.raises(ArtifactError, match=r"no dsee\.json.*AutoModel\.from_pretrained"):
        dsee.load(tmp_path / "plain")


def test_a_manifest_is_readable_json_with_sorted_keys(artifact):
    text = (artifact / "dsee.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_every_file_but_the_manifest_is_listed(artifact):
    names = {p.relative_to(artifact).as_posix() for p in artifact.rglob("*") if p.is_file()}
    assert set(read_manifest(artifact).files) == names - {"dsee.json"}

"""The files of E2E, DART and WebNLG as they are published."""

import json

import pytest
from pydantic import ValidationError

from dsee.errors import InputError
from dsee.tasks.generation import GenerationSpec, load_generation_data
from dsee.tasks.spec import DataSpec

DART = [
    {
        "tripleset": [["Mars Hill College", "JOINED", "1973"], ["Mars Hill College", "LOCATION", "Mars Hill"]],
        "subtree_was_extended": True,
        "annotations": [
            {"source": "WikiSQL_decl_sents", "text": "A school from Mars Hill joined in 1973."},
            {"source": "WikiSQL_lily", "text": "Mars Hill College joined in 1973."},
        ],
    },
    {
        "tripleset": [["The Mill", "eatType", "pub"]],
        "subtree_was_extended": False,
        "annotations": [{"source": "e2e", "text": "The Mill is a pub."}],
    },
]


def triple(subject, relation, thing):
    return {"subject": subject, "property": relation, "object": thing}


WEBNLG = {
    "entries": [
        {
            "1": {
                "category": "Airport",
                "lexicalisations": [
                    {"comment": "good", "lex": "Aarhus Airport serves Aarhus.", "xml_id": "Id1"},
                    {"comment": "good", "lex": "The airport of Aarhus is Aarhus Airport.", "xml_id": "Id2"},
                ],
                "modifiedtripleset": [triple("Aarhus_Airport", "cityServed", '"Aarhus, Denmark"')],
                "originaltriplesets": {"originaltripleset": [[triple("a", "b", "c")]]},
                "shape": "(X (X))",
                "size": "1",
                "xml_id": "Id1",
            }
        },
        {
            "2": {
                "category": "Food",
                "lexicalisations": [{"comment": "good", "lex": "Bionico is from Mexico.", "xml_id": "Id1"}],
                "modifiedtripleset": [triple("Bionico", "country", "Mexico"), triple("Bionico", "course", "Dessert")],
            }
        },
    ]
}
E2E = (
    "mr,ref\n"
    '"name[The Mill], eatType[pub], priceRange[£20-25], familyFriendly[yes]",The Mill is a pub for families.\n'
    '"name[The Mill], eatType[pub], priceRange[£20-25], familyFriendly[yes]","A pub, The Mill."\n'
    '"name[Cotto], near[Café Rouge]",Cotto is near Café Rouge.\n'
)


def load(folder, form, content, **data):
    name = "train.csv" if form == "e2e" else "train.json"
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    (folder / name).write_text(text, encoding="utf-8")
    spec = DataSpec(train=name, validation=name, test=name, **data)
    return load_generation_data(spec, GenerationSpec(format=form), "data-to-text", folder, 0)


def test_dart(tmp_path):
    found = load(tmp_path, "dart", DART)
    assert found.sizes == {"train": 3, "validation": 3, "test": 2}
    # LoRA's script has the relations in small letters
    assert found.test[0].prompt == "Mars Hill College : joined : 1973 | Mars Hill College : location : Mars Hill"
    assert found.test[0].references == ("A school from Mars Hill joined in 1973.", "Mars Hill College joined in 1973.")
    assert [e.target for e in found.train] == [a["text"] for row in DART for a in row["annotations"]]
    assert found.notes == ["counted 1 further text(s) for the same prompts as references: test"]


def test_webnlg(tmp_path):
    found = load(tmp_path, "webnlg", WEBNLG)
    assert found.sizes == {"train": 3, "validation": 3, "test": 2}
    assert found.test[0].prompt == 'Aarhus_Airport : cityServed : "Aarhus, Denmark"'
    assert len(found.test[0].references) == 2
    assert found.test[1].prompt == "Bionico : country : Mexico | Bionico : course : Dessert"
    assert found.test[1].place.endswith("train.json, entry 2")


@pytest.mark.parametrize("header", ["mr,ref", "MR,ref"])
def test_e2e(tmp_path, header):
    found = load(tmp_path, "e2e", E2E.replace("mr,ref", header))
    assert found.sizes == {"train": 3, "validation": 3, "test": 2}
    assert found.test[0].prompt == "name : The Mill | Type : pub | price : £20-25 | family friendly : yes"
    assert found.test[0].references == ("The Mill is a pub for families.", "A pub, The Mill.")
    assert found.test[1].prompt == "name : Cotto | near : Café Rouge"


BAD = [
    ("dart", [*DART, {"tripleset": [["a", "b"]], "annotations": [{"text": "x"}]}], "line 43: not as this set has it"),
    ("dart", [*DART, {"tripleset": [], "annotations": [{"text": "x"}]}], "its set of triples is empty"),
    ("dart", [*DART, {"tripleset": [["a", "b", "c"]], "annotations": []}], "it has no text"),
    ("dart", [*DART, {"tripleset": [["a", "b", "c"]], "annotations": [{"text": 3}]}], "holds 3, which is not text"),
    ("webnlg", {"entries": [*WEBNLG["entries"], {"3": {"lexicalisations": []}}]}, "entry 3: not as this set has it"),
    ("webnlg", {"entries": [*WEBNLG["entries"], 7]}, "entry 3: no object: 7"),
    ("e2e", E2E + "a pub,Text.\n", "line 5: column 'mr' holds 'a pub', which is not name"),
    ("e2e", E2E + "name[a] and more,Text.\n", "line 5: column 'mr' holds"),
]


@pytest.mark.parametrize(("form", "content", "said"), BAD)
def test_a_row_that_is_not_of_the_set_is_named_or_left_out(tmp_path, form, content, said):
    with pytest.raises(InputError, match=said):
        load(tmp_path, form, content)
    found = load(tmp_path, form, content, max_bad_rows=3)
    assert found.sizes == {"train": 3, "validation": 3, "test": 2}
    assert found.bad.notes[0].startswith("left out 3 bad row(s)")


def test_texts_that_webnlg_marks_as_bad_are_bad_rows(tmp_path):
    content = json.loads(json.dumps(WEBNLG))
    content["entries"][0]["1"]["lexicalisations"][1]["comment"] = "toFix"
    with pytest.raises(InputError, match="entry 1: a text that the file itself marks as 'toFix'"):
        load(tmp_path, "webnlg", content)
    assert load(tmp_path, "webnlg", content, max_bad_rows=3).sizes["train"] == 2


@pytest.mark.parametrize(
    ("form", "content", "said"),
    [
        ("webnlg", "[]", "is not WebNLG's JSON"),
        ("webnlg", "{", "is not WebNLG's JSON"),
        ("webnlg", '{"entries": []}', "has no entries"),
        ("dart", '[{"a": 1}]', r"has no column 'tripleset' \(generation.format: dart\)"),
        ("e2e", "a,b\n1,2\n", r"has no column 'mr' \(generation.format: e2e\)"),
    ],
)
def test_another_file_is_refused(tmp_path, form, content, said):
    with pytest.raises(InputError, match=said):
        load(tmp_path, form, content)


def test_a_format_has_columns_of_its_own():
    with pytest.raises(ValidationError, match="format: dart has columns of its own; leave out target"):
        GenerationSpec(format="dart", target="text")

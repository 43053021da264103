"""Class names in the forms that people store them in."""

from __future__ import annotations

import json

import pytest

from resnetkit.errors import WeightsError
from resnetkit.models.weights.classnames import parse_names, read_classes

NAMES = ["tench", "goldfish", "great white shark"]
KERAS = {"2": ["n01484850", "great white shark"], "0": ["n01440764", "tench"]}
KERAS["1"] = ["n01443537", "goldfish"]
FORMS = {
    "keras.json": json.dumps(KERAS),
    "lists.json": json.dumps([KERAS[str(i)] for i in range(3)]),
    "pairs.json": json.dumps([[2, NAMES[2]], [0, NAMES[0]], [1, NAMES[1]]]),
    "rows.json": json.dumps([{"id": i, "name": NAMES[i]} for i in (2, 0, 1)]),
    "config.json": json.dumps(
        {
            "architectures": ["ResNetForImageClassification"],
            "id2label": {str(i): name for i, name in enumerate(NAMES)},
            "label2id": {name: i for i, name in enumerate(NAMES)},
        }
    ),
    "classes.json": json.dumps({"classes": NAMES}),
    "texts.json": json.dumps({name: str(i) for i, name in enumerate(NAMES)}),
    "printed.txt": "{0: 'tench',\n 1: 'goldfish',\n 2: 'great white shark'}",
    "list.txt": "['tench', 'goldfish', 'great white shark']",
    "plain.txt": "\ufefftench\r\n\r\ngoldfish\r\ngreat white shark\r\n",
    "numbered.txt": "2 great white shark\n0 tench\n1 goldfish\n",
    "colons.txt": "0: tench\n1: goldfish\n2: great white shark\n",
    "commas.txt": "2,great white shark\n0,tench\n1,goldfish\n",
    "after.txt": "great white shark 2\ntench 0\ngoldfish 1\n",
    "synset.txt": "n01440764 tench\nn01443537 goldfish\nn01484850 great white shark\n",
    "yaml.txt": "- tench\n- goldfish\n- great white shark\n",
    "list.yaml": "- tench\n- goldfish\n- great white shark\n",
    "names.yaml": "names:\n  1: goldfish\n  0: tench\n  2: great white shark\n",
    "header.csv": "name,index\ngreat white shark,2\ntench,0\ngoldfish,1\n",
    "more.csv": "id;class;photos\n2;great white shark;9\n0;tench;4\n1;goldfish;1\n",
    "two.csv": "2,great white shark\n0,tench\n1,goldfish\n",
    "pandas.csv": ",name\n2,great white shark\n0,tench\n1,goldfish\n",
    "one.csv": "class_name\ntench\ngoldfish\ngreat white shark\n",
    "two.tsv": "tench\t0\ngreat white shark\t2\ngoldfish\t1\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_names_in_the_order_of_the_logits(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    assert read_classes(tmp_path / name) == NAMES


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("a.txt", "10 euros\n20 euros\n50 euros", ["10 euros", "20 euros", "50 euros"]),
        ("a.txt", "room 0\nroom 1\nroom 2", ["room 0", "room 1", "room 2"]),
        ("a.txt", "0\n1\n10\n2", ["0", "1", "10", "2"]),
        ("a.json", '{"0": 0, "1": 1, "10": 2, "2": 3}', ["0", "1", "10", "2"]),
        ("a.json", '{"0": "0", "1": "1", "2": "10", "3": "2"}', ["0", "1", "10", "2"]),
        ("a.csv", '"a, b"\nc\n', ["a, b", "c"]),
    ],
)
def test_numbers_in_names_are_kept(tmp_path, name, text, names):
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == names


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "cat_to_name.json",
            b'{"1": "a", "2": "b", "3": "c"}',
            r"0 to 2; got 1 to 3\. The numbers may start at 1",
        ),
        ("a.txt", b"1 a\n2 b\n3 c", r"ImageFolder sorts as text \(1, 10, 100, 2\)"),
        ("a.json", b'{"0": "1", "1": "2", "2": "0"}', "either could be the index"),
        ("a.json", b'{"0": {"a": 1}, "1": "b"}', "a name must be text; got a dict"),
        ("a.json", b'{"0": ["a", "b"], "1": ["c", "d"]}', "a name must be text; got a list"),
        ("a.json", b'[{"file": "a"}]', "expected an index .* in each row; got file"),
        ("a.json", b'{"classes": ["a", "b"], "class_to_idx": {"b": 0, "a": 1}}', "differently"),
        ("a.json", b"[]", "expected class names by index or a list"),
        ("a.yaml", b"- yes\n- no\n", "was read as True; put it in quotes"),
        ("a.yaml", b"a: [", "is not valid YAML"),
        ("a.txt", b"a\nb\na\n", "classes 0 and 2 are both called 'a'"),
        ("a.txt", b"\n\n", "is empty; expected class names"),
        ("a.txt", b"caf\xe9\ntea", "cannot read class names from"),
        ("a.pkl", b"\x80\x04\x95", "cannot read class names from"),
        ("a.csv", b"1,2,3\n4,5,6\n", "expected columns `index` and `name`"),
        ("a.csv", b"0," + b"a" * 200_000, r"a\.csv is not a table of class names: field larger"),
        ("a.csv", b'id,name\n0,a\n1,"b\n2,c\n', "not a table of class names: unexpected end"),
        ("a.csv", b"id,name\n0,a\n1\n", "not every row has the columns id, name"),
        ("a.txt", b"{0: print('x')}", "as JSON or a printed Python value"),
    ],
)
def test_other_forms_raise(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        read_classes(tmp_path / name)


def test_types_tell_indices_from_names():
    assert parse_names({2: "0", 0: "1", 1: "2"}, "x") == ["1", "2", "0"]
    assert parse_names({"2": 0, "0": 1, "1": 2}, "x") == ["2", "0", "1"]


def test_a_list_in_utf_16_is_read(tmp_path):
    """Excel's "Unicode Text", and PowerShell's ``>``."""
    (tmp_path / "a.csv").write_text("id\tname\n1\tb\n0\t\u00e4\n", encoding="utf-16")
    assert read_classes(tmp_path / "a.csv") == ["\u00e4", "b"]


@pytest.mark.parametrize("training", ["train", "Training", "seg_train/seg_train", "Train Images"])
def test_the_folder_of_the_data_is_read_as_in_training(tmp_path, training):
    names = ["0", "1", "10", "2"]  # ImageFolder's order
    for name in (*names, "@eaDir", "__MACOSX", ".cache"):
        (tmp_path / training / name).mkdir(parents=True)
    (tmp_path / training.split("/")[0].replace("rain", "est")).mkdir()
    assert read_classes(tmp_path) == names
    assert read_classes(tmp_path / training) == names


def test_a_folder_without_sub_folders_raises(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(WeightsError, match="has no sub-folders"):
        read_classes(tmp_path)

"""Manifests as people and spreadsheets write them: every row is an image or is counted."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.data import folder
from resnetkit.data.paths import spelling
from resnetkit.errors import DataError


def write(root, text, *files):
    for path in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    file = root / "m.csv"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    return file


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["1", "1.0", "01", "1", "2"], ("1", "2")),
        (["01", "02", "10"], ("01", "02", "10")),
        (["Cat", "cat", "cat", "dog"], ("cat", "dog")),
        (["Cat", "cat", "dog"], ("Cat", "dog")),
        (["a", "A", "b"], ("A", "a", "b")),
        (["1.5", "1.50", "15"], ("1.5", "15")),
        (["-1", "1"], ("-1", "1")),
        (["0", "00", "0.0", "x"], ("0", "x")),
    ],
)
def test_spellings_of_one_label_are_one_class(tmp_path, labels, classes):
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
    data = folder.read_dataset(write(tmp_path, "path,label\n" + rows))
    assert data.classes == classes
    assert len(data.splits["all"]) == len(labels)
    merged = len(set(labels)) > len(classes)
    assert [f"{labels[0]!r}" in note and "one class" in note for note in data.notes] == [
        True
    ] * merged


def test_a_quote_without_its_partner_is_named(tmp_path):
    rows = "".join(f"a/{number}.jpg,cat\n" for number in range(20_000))
    file = write(tmp_path, f'path,label\n"a/x.jpg,cat\n{rows}')
    with pytest.raises(DataError, match=r"m\.csv, line \d+: .* unmatched double quote"):
        folder.read_dataset(file)


@pytest.mark.parametrize("opening", ['"5 inch', '"ok" inch'])
def test_a_quote_hides_no_rows(tmp_path, opening):
    """An unmatched quote, even in an unused column, would swallow the rows after it."""
    rows = [f"{number}.png,{number % 2},ok\n" for number in range(8)]
    rows[3] = f"3.png,1,{opening}\n"
    with pytest.raises(DataError, match=r"m\.csv, line \d: .* unmatched double quote"):
        folder.read_dataset(write(tmp_path, "path,label,note\n" + "".join(rows)))


def test_quotes_within_a_value_are_text(tmp_path):
    text = 'path,label\n1.png,5" screen\n2.png,the "big" one\n3.png,"5"" screen"\n'
    data = folder.read_dataset(write(tmp_path, text))
    assert data.classes == ('5" screen', 'the "big" one')
    assert len(data.splits["all"]) == 3


@pytest.mark.parametrize("end", [b"\x00", b"\x00\xdcx\x00"], ids=["cut", "half a character"])
def test_damaged_utf_16_is_named(tmp_path, end):
    file = tmp_path / "m.csv"
    file.write_bytes("path,label\n1.png,a\n2.png,b\n".encode("utf-16") + end)
    with pytest.raises(DataError, match=r"m\.csv is damaged: not valid UTF-16"):
        folder.read_dataset(file)


def test_spellings_are_one_class_in_all_splits(tmp_path):
    text = "path,label,split\n1.png,7.0,Training\n2.png,8,train\n3.png,7,Testing\n4.png,7,dev\n"
    data = folder.read_dataset(write(tmp_path, text))
    assert data.classes == ("7", "8")
    assert {name: split.labels.tolist() for name, split in data.splits.items()} == {
        "train": [0, 1], "test": [0], "val": [0],
    }  # fmt: skip


def test_composed_and_decomposed_labels_are_one(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    data = folder.read_dataset(
        write(tmp_path, f"path,label\n1.png,{composed}\n2.png,{decomposed}\n3.png,x\n")
    )
    assert data.classes == (composed, "x")


def test_ids_without_extension_are_found(tmp_path):
    text = "path,label\nx/007,a\nx/8.b,b\nx\\9.png,a\nx/7.jpg,b\n"
    file = write(tmp_path, text, "x/007.JPG", "x/8.b.webp", "x/9.png", "x/7.jpg")
    data = folder.read_dataset(file)
    assert list(data.splits["all"].paths) == ["x/007.JPG", "x/9.png", "x/8.b.webp", "x/7.jpg"]
    (note,) = data.notes
    assert note.startswith("3 paths in ")
    assert note.endswith("such as x/007 -> x/007.JPG")
    assert not data.left_out


def test_an_id_of_two_files_is_an_error(tmp_path):
    file = write(tmp_path, "path,label\n7,a\n8,b\n", "7.jpg", "7.png", "8.png")
    with pytest.raises(DataError, match=r"line 2: 7 could be 7\.jpg or 7\.png"):
        folder.read_dataset(file)


def test_every_row_is_an_image_or_counted(tmp_path):
    """The row of a missing file is kept; the error comes when the file is read."""
    text = "path,label\ngone,a\n1.png,b\nnotes.txt,a\n._1.png,a\nbare,a\n"
    data = folder.read_dataset(write(tmp_path, text, "1.png", "notes.txt", "bare"))
    assert list(data.splits["all"].paths) == ["gone", "bare", "1.png"]
    assert data.left_out.lines() == [
        "1 file of another kind, such as notes.txt",
        "1 hidden or system file, such as ._1.png",
    ]


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    text = f"path,label\n{name}/1.png,{name}\nx/1.png,x\n"
    try:
        file = write(tmp_path, text, f"{name}/1.png", "x/1.png")
    except OSError:
        pytest.skip("this disk accepts only UTF-8 names")
    data = folder.read_dataset(file)
    assert data.classes == (name, "x")
    assert data.splits["all"].path(0).exists()
    for row in (f"x/1.png,{name}\n", f"{name}/2.png,x\n"):  # a manifest in Latin-1
        with pytest.raises(DataError, match="save it as CSV in UTF-8"):
            folder.read_dataset(write(tmp_path, "path,label\n" + row))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path;label;split\r\nx/1.png;ca,t;train\r\nx/2.png;d\u00f6g;train\r\n", "utf-8-sig"),
        ("sep=;\r\npath;label;split\r\nx/1.png;ca,t;\r\nx/2.png;d\u00f6g;\r\n", "utf-8-sig"),
        ("sep=|\npath|label\nx/1.png|ca,t\nx/2.png|d\u00f6g\n", "utf-8"),
        ("Path\tLabel\r\nx/1.png\tca,t\r\nx/2.png\td\u00f6g\r\n", "utf-16"),
        (',PATH,"Label"\n0,x/1.png,"ca,t"\n1,x/2.png,d\u00f6g,,,\n', "utf-8"),
    ],
    ids=["semicolons", "sep and semicolons", "sep", "Unicode text", "pandas and trailing commas"],
)
def test_what_spreadsheets_write(tmp_path, text, encoding):
    """The header line decides how the file is read."""
    write(tmp_path, "", "x/1.png", "x/2.png").write_bytes(text.encode(encoding))
    data = folder.read_dataset(tmp_path / "m.csv")
    assert data.classes == ("ca,t", "d\u00f6g")
    assert list(next(iter(data.splits.values())).paths) == ["x/1.png", "x/2.png"]
    assert data.notes == ()


def test_the_line_of_an_error_counts_all_lines(tmp_path):
    with pytest.raises(DataError, match=r"line 3: path or label is empty"):
        folder.read_dataset(write(tmp_path, "sep=;\npath;label\n;a\n"))


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_composed_and_decomposed_paths_are_one(tmp_path, on_disk):
    """A manifest from macOS may decompose names that another disk composes, or vice versa."""
    name = {form: unicodedata.normalize(form, "caf\u00e9/1.png") for form in ("NFC", "NFD")}
    other = name["NFD" if on_disk == "NFC" else "NFC"]
    file = write(tmp_path, f"path,label\n{other},a\n2.png,b\n", name[on_disk], "2.png")
    data = folder.read_dataset(file)
    assert data.splits["all"].path(0).exists()


LEFT_OUT = ("n.txt", "._a.png")
PATHS = ("a.png", "b", "c", "x/7", "x\\7.jpg", "gone", *LEFT_OUT)
LABELS = ("1", "1.0", "01", "Cat", "cat", "caf\u00e9", "cafe\u0301", "a", "A")
ROWS = st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(LABELS)), min_size=1, max_size=12)


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_the_rows_add_up(rows):
    with tempfile.TemporaryDirectory() as name:
        text = "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows)
        file = write(Path(name), text, "a.png", "b.jpg", "c", "x/7.jpg", "n.txt")
        left_out = sum(path in LEFT_OUT for path, _ in rows)
        if left_out == len(rows):
            with pytest.raises(DataError, match="No images"):
                folder.survey(file)
            return
        found = folder.survey(file)
        items = sum(len(paths) for paths in found.splits["all"].values())
        assert items + left_out == len(rows)
        files = {"b": "b.jpg", "x\\7.jpg": "x/7.jpg", "x/7": "x/7.jpg"}
        given = Counter(
            (files.get(path, path), spelling(unicodedata.normalize("NFC", label)))
            for path, label in rows
            if path not in LEFT_OUT
        )
        by_class = found.splits["all"].items()
        assert given == Counter((p, spelling(label)) for label, paths in by_class for p in paths)
        assert len({spelling(label) for label, _ in by_class}) == len(by_class)
        assert sum(found.left_out.values()) == left_out

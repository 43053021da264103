from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace

import pytest

from resnetkit.errors import OutputError
from resnetkit.inference import rows
from resnetkit.inference.images import Unreadable
from resnetkit.inference.prediction import BATCH_SIZE, Prediction
from resnetkit.storage import csv_text

DIGEST = "0123456789ab"
ODD = ["plain.png", 'quo"te.png', "new\nline.png", "com,ma.png", "花.png", "bad\udcff.png", ""]
NAMES = [f"{i}{ODD[i % len(ODD)]}" for i in range(2 * BATCH_SIZE + 5)]


def make_answer(name, shift=0.0):
    if name.startswith("7"):
        return Prediction(name, (), DIGEST, f'{name}: cannot be decoded ("EOF",\n)')
    return Prediction(name, (("ro\nse", 0.75 + shift), ("tulip", 0.25 - shift)), DIGEST)


def write(path, form, resume=False, names=NAMES, shift=0.0, stop=None):
    """Do what `resnet predict` does, with answers that depend only on the name."""
    with rows.RowsFile(path, form, DIGEST, resume) as file:
        for number, name in enumerate(file.check_sources(names)):
            if number == stop:
                break
            if number >= file.first:
                file.write(make_answer(name, shift))
    return path.read_bytes()


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_file_cut_anywhere_resumes_to_the_same_bytes(tmp_path, form):
    whole = write(tmp_path / "whole", form)
    for cut in [*range(0, len(whole), 13), *range(len(whole) - 150, len(whole) + 1)]:
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        assert write(path, form, resume=True) == whole, cut


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_the_standard_library_reads_the_rows(tmp_path, form):
    path = tmp_path / "rows"
    text = write(path, form).decode()
    if form == "csv":
        with path.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
    else:
        found = [json.loads(line) for line in text.splitlines()]
    assert len(found) == len(NAMES)
    for row, name in zip(found, NAMES, strict=True):
        expected = make_answer(name).to_dict()
        shown = name.encode("utf-8", "backslashreplace").decode() if form == "csv" else name
        assert row["source"] == shown
        assert (row["class"] or None) == expected["class"]
        assert (row["probability"] or None) in (
            expected["probability"],
            expected["probability"] and str(expected["probability"]),
        )


def test_only_the_last_batch_is_computed_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    for count, first in ((0, 0), (1, 0), (BATCH_SIZE, 0), (BATCH_SIZE + 1, BATCH_SIZE)):
        path.unlink(missing_ok=True)
        write(path, "jsonl", stop=count)
        with rows.RowsFile(path, "jsonl", DIGEST, resume=True) as file:
            assert (file.count, file.first) == (count, first)
            assert file.failed == sum(name.startswith("7") for name in NAMES[:first])


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_mismatch_is_refused_and_the_file_kept(tmp_path, form):
    path = tmp_path / "rows"
    write(path, form, stop=40)
    before = path.read_bytes()

    def check_refused(message, **options):
        with pytest.raises(OutputError, match=message):
            write(path, form, **options)
        assert path.read_bytes() == before

    check_refused("exists. Add")
    check_refused("row 1 is for", resume=True, names=NAMES[::-1])
    check_refused("the input has no image", resume=True, names=NAMES[:39])
    check_refused("row 1 is for", resume=True, names=[Unreadable("folder", "empty"), *NAMES])
    check_refused("different settings or images", resume=True, shift=0.01)
    check_refused("With 128 images or more.*add --engine eager", resume=True, shift=0.01)
    with pytest.raises(OutputError, match=f"answers from model {DIGEST}"):
        rows.RowsFile(path, form, "ba9876543210", resume=True)
    with pytest.raises(OutputError, match=r"not written by"):
        rows.RowsFile(path, "csv" if form == "jsonl" else "jsonl", DIGEST, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("content", [b'{"my":"config"}', b"s,b", b"text", b"{}", b"\0"])
def test_a_file_of_another_program_is_kept_even_without_a_newline(tmp_path, form, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(OutputError, match=f"notes was not written by resnet predict as {form}"):
        rows.RowsFile(path, form, DIGEST, resume=True)
    assert path.read_bytes() == content


DOUBTFUL = {
    "coverage": 0.9, "false_alarms": 0.05, "class_set": ("ro\nse", 'tu"l,ip'), "strangeness": 0.96,
}  # fmt: skip


def test_sets_and_strangeness_are_there_only_if_requested():
    plain = make_answer("a.png")
    assert rows.columns_for(None, None) == rows.COLUMNS
    assert plain.to_dict().keys() == {"source", "class", "probability", "top", "model", "error"}
    asked = replace(plain, **DOUBTFUL)
    assert json.loads(rows.format_row(asked, "jsonl")) == {
        **plain.to_dict(),
        "class": "unknown",
        "top": [{"class": "ro\nse", "probability": 0.75}, {"class": "tulip", "probability": 0.25}],
        "set": ["ro\nse", 'tu"l,ip'],
        "strangeness": 0.96,
    }
    header = rows.format_header("csv", rows.columns_for(0.9, 0.05))
    assert header == "source,class,probability,model,error,set,strangeness\n"
    (found,) = csv.DictReader(io.StringIO(header + rows.format_row(asked, "csv")))
    assert json.loads(found["set"]) == ["ro\nse", 'tu"l,ip']
    assert float(found["strangeness"]) == 0.96
    text = rows.format_row(asked, "table")
    assert text.endswith('   set: ro\\nse, tu"l,ip   strangeness: 96.0%\n')
    assert rows.columns_for(0.9, None) == (*rows.COLUMNS, "set")
    assert rows.columns_for(None, 0.9) == (*rows.COLUMNS, "strangeness")


def test_rows_of_unreadable_images_have_the_same_keys():
    asked = replace(make_answer("7"), coverage=0.9, false_alarms=0.05)
    found = asked.to_dict()
    assert (found["set"], found["strangeness"], found["class"]) == ([], None, None)
    columns = rows.columns_for(0.9, 0.05)
    (row,) = csv.DictReader(
        io.StringIO(rows.format_header("csv", columns) + rows.format_row(asked, "csv"))
    )
    assert (row["set"], row["strangeness"]) == ("[]", "")


def test_rows_with_sets_resume_to_the_same_bytes_with_the_same_options_only(tmp_path):
    columns = rows.columns_for(0.9, 0.05)

    def write_sets(path, columns=columns):
        with rows.RowsFile(
            path, "csv", DIGEST, resume=True, columns=columns, false_alarms=0.05
        ) as file:
            for number, name in enumerate(file.check_sources(NAMES)):
                if number >= file.first:
                    file.write(replace(make_answer(name), **DOUBTFUL))
        return path.read_bytes()

    whole = write_sets(tmp_path / "whole")
    for cut in range(0, len(whole), 97):
        (tmp_path / "cut").write_bytes(whole[:cut])
        assert write_sets(tmp_path / "cut") == whole
    with pytest.raises(OutputError, match=r"has the columns source.*set,strangeness; expected"):
        write_sets(tmp_path / "whole", rows.COLUMNS)
    assert (tmp_path / "whole").read_bytes() == whole


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_every_row_is_compared_with_the_threshold_and_false_alarms(tmp_path, form):
    """The rows that differ are in the first batch; the last batch is the same."""
    path = tmp_path / "rows"
    columns = rows.columns_for(None, 0.2)

    def resume(threshold=0.5, false_alarms=0.2, classes=("ro\nse", "tulip")):
        options = {"threshold": threshold, "false_alarms": false_alarms}
        with rows.RowsFile(
            path, form, DIGEST, resume=True, columns=columns, classes=classes, **options
        ) as file:
            for number, name in enumerate(NAMES):
                if number >= file.first:
                    shift, strangeness = {3: (-0.15, 0.0), 4: (0.0, 0.7)}.get(number, (0.1, 0.1))
                    answer = replace(make_answer(name, shift), **options)
                    file.write(answer if answer.error else replace(answer, strangeness=strangeness))
        return path.read_bytes()

    whole = resume()
    assert resume(threshold=0.55) == whole  # no row is different
    for options in ({"threshold": 0.61}, {"false_alarms": 0.3}):
        with pytest.raises(OutputError, match=r"different settings: row [45] has the class ro"):
            resume(**options)
        assert path.read_bytes() == whole
        path.unlink()
        unknown = resume(**options)
        with pytest.raises(OutputError, match=r"row [45] has the class unknown.*threshold 0\.5"):
            resume()
        assert (
            resume(classes=("unknown", "tulip")) == unknown
        )  # "unknown" may be one of the model's classes
        path.write_bytes(whole)


def test_no_csv_cell_is_a_formula_and_the_file_resumes(tmp_path):
    names = ["=1.png", "+2.png", "-3.png", "@4.png", "\t5.png", "\r6.png", "'=7.png", "'8.png"]
    names = names * BATCH_SIZE
    whole = write(tmp_path / "whole", "csv", names=names)
    with (tmp_path / "whole").open(newline="", encoding="utf-8") as file:
        sources = [row["source"] for row in csv.DictReader(file)]
    assert not [name for name in sources if name.startswith(tuple("=+-@\t\r"))]
    assert list(map(csv_text, sources)) == names
    for cut in range(0, len(whole), 101):
        (tmp_path / "cut").write_bytes(whole[:cut])
        assert write(tmp_path / "cut", "csv", resume=True, names=names) == whole


def test_a_network_without_a_head_has_rows_without_a_class():
    answer = Prediction("a.png", (), DIGEST)
    assert rows.format_row(answer, "table") == "a.png  no class\n"
    assert json.loads(rows.format_row(answer, "jsonl"))["class"] is None
    assert rows.format_row(answer, "csv") == f"a.png,,,{DIGEST},\n"


def test_a_table_row_is_one_line():
    text = rows.format_row(make_answer("new\nline.png"), "table")
    assert text == "new\\nline.png  ro\\nse  75.00%   (tulip 25.0%)\n"
    assert rows.format_row(make_answer("7"), "table").count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["7.png", None])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, name):
    file = rows.RowsFile(tmp_path / "rows.csv", "csv", DIGEST)
    file._file.close()
    file._file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(OutputError, match=r"rows\.csv cannot be written \(No space left"), file:
        if name is None:
            file._file.write(b"unflushed")
        else:
            file.write(make_answer(name))

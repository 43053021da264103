"""Files and values that name classes -> names in the order of the logits.

Every form says which name belongs to which logit, or is refused: nothing is put in an order here.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...errors import WeightsError

WRAPPERS = (
    *("id2label", "idx_to_class", "classes", "class_names", "names", "label_names"),
    *("class_to_idx", "label2id"),
)
_INDEX = ("index", "idx", "id", "class_id", "class_index", "class_idx", "label_id", "category_id")
_NAME = ("name", "class", "class_name", "label", "category", "classname")
_WORDNET = re.compile(r"n\d{8}")
_HOW = "Write one name a line, in the order of the logits"


def read_classes(path: Path) -> list[str]:
    """Read class names in the order of the logits.

    Args:
        path: JSON, YAML or a printed Python value: a list, ``{"0": "daisy"}``, ``{"daisy": 0}``,
            Keras's ``{"0": ["n01440764", "tench"]}``, or one of these under ``id2label``,
            ``class_to_idx`` and the like; CSV with the index and the name, or the name alone; text
            with a name a line, also numbered from 0; or a folder whose sub-folders are the
            classes, in the order of torchvision's ``ImageFolder``: sorted as text.

    Raises:
        WeightsError: no such file, or it does not say which name belongs to which logit.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise WeightsError(
            f"{path} is no file; expected class names as JSON, YAML, CSV or one a line, or the "
            "folder of the training data"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise WeightsError(f"{path} is not text in UTF-8, as class names are: {error}") from error
    suffix, where = path.suffix.lower(), str(path)
    if suffix == ".json" or text.lstrip().startswith(("{", "[")):
        return names_of(_value(text, where, strict=suffix == ".json"), where)
    if suffix in (".yaml", ".yml"):
        try:
            return names_of(yaml.safe_load(text), where)
        except yaml.YAMLError as error:
            raise WeightsError(f"{path} is not valid YAML: {error}") from error
    if suffix in (".csv", ".tsv"):
        return _of_table(text, where, "\t" if suffix == ".tsv" else "")
    return _of_lines([line.strip() for line in text.splitlines() if line.strip()], where)


def names_of(value: object, where: str) -> list[str]:
    """The names in a value that JSON, YAML or a checkpoint holds; see `read_classes`.

    Raises:
        WeightsError: it is of another form.
    """
    if isinstance(value, Mapping):
        inside = [key for key in WRAPPERS if isinstance(value.get(key), Mapping | list | tuple)]
        if inside:
            found = {key: names_of(value[key], f"{where}, {key}") for key in inside}
            if any(names != found[inside[0]] for names in found.values()):
                raise WeightsError(f"{where}: {' and '.join(inside)} name the classes differently")
            return found[inside[0]]
        return _of_pairs(list(value.items()), where)
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, str | int) for item in value):
            return check_names([_name(item, where) for item in value], where)
        if all(isinstance(item, list | tuple) and len(item) == 2 for item in value):
            if all(_WORDNET.fullmatch(str(item[0])) for item in value):
                return check_names([_name(item[1], where) for item in value], where)
            return _of_pairs([(item[0], item[1]) for item in value], where)
        if all(isinstance(item, Mapping) for item in value):
            return _of_rows(value, where)
    raise WeightsError(f"{where}: expected class names by index or a list. {_HOW}")


def select_names(
    said: Mapping[str, object], count: int, source: str
) -> tuple[list[str] | None, list[str]]:
    """Return the names of ``count`` classes that a checkpoint says itself, and notes.

    Args:
        said: values by the name under which the file has them.

    Raises:
        WeightsError: it says two different things.
    """
    found: dict[str, list[str]] = {}
    notes = []
    for key, value in said.items():
        try:
            names = names_of(value, key)
        except WeightsError as error:
            notes.append(f"could not use the class names under {key!r}: {error}")
            continue
        if len(names) == count:
            found[key] = names
        elif count:
            notes.append(f"{key!r} names {len(names)} classes, not {count}: left out")
    if not found:
        return None, notes
    first = next(iter(found))
    if any(names != found[first] for names in found.values()):
        raise WeightsError(
            f"{source}: {' and '.join(found)} name the classes differently; --classes"
        )
    return found[first], [*notes, f"took the class names under {first!r}"]


def check_names(names: Sequence[str], where: str) -> list[str]:
    """Make sure that all names are there and differ, since answers are matched by name.

    Raises:
        WeightsError: a name is empty, or stands for two logits.
    """
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise WeightsError(f"{where}: the name of class {index} is {name!r}; expected text")
        if first.setdefault(name, index) != index:
            raise WeightsError(
                f"{where}: classes {first[name]} and {index} are both called {name!r}; every class "
                "needs a name that no other has"
            )
    return list(names)


def _of_folder(folder: Path) -> list[str]:
    def inside(place: Path) -> list[str]:
        with os.scandir(place) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))

    names = inside(folder)
    if "train" in names and {"val", "valid", "validation", "test"} & set(names):
        folder, names = folder / "train", inside(folder / "train")
    if not names:
        raise WeightsError(f"{folder} has no sub-folders, so that it names no classes")
    return names


def _value(text: str, where: str, strict: bool) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            return ast.literal_eval(text.strip())  # as `print` shows a dictionary
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            what = "JSON" if strict else "JSON or a printed Python value"
            raise WeightsError(
                f"{where}: expected class names by index or a list, as {what} ({error})"
            ) from error


def _of_pairs(pairs: list[tuple[Any, Any]], where: str) -> list[str]:
    """Of ``(index, name)`` or ``(name, index)``."""
    left = [_index(key) for key, _ in pairs]
    right = [_index(value) for _, value in pairs]
    by_name = None not in right and _complete(right)
    by_index = None not in left and _complete(left)
    same = len({type(side) for pair in pairs for side in pair}) == 1
    if by_name and by_index and left != right and same:
        raise WeightsError(
            f"{where}: both sides are numbers from 0 to {len(pairs) - 1}, so that either could be "
            f"the index. {_HOW}"
        )
    if by_name and not (by_index and isinstance(pairs[0][0], int)):
        found = {index: key for (key, _), index in zip(pairs, right, strict=True)}
    elif by_index:
        found = {index: value for (_, value), index in zip(pairs, left, strict=True)}
    else:
        raise WeightsError(f"{where}: {_no_index(left if None not in left else right)}")
    return check_names([_name(found[i], f"{where}, class {i}") for i in range(len(found))], where)


def _index(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return int(value) if re.fullmatch(r"\d+", str(value).strip()) else None


def _complete(indices: Sequence[int | None]) -> bool:
    return sorted(i for i in indices if i is not None) == list(range(len(indices)))


def _no_index(indices: Sequence[int | None]) -> str:
    there = sorted(i for i in indices if i is not None)
    if not there or len(there) < len(indices):
        return f"expected class names by index or a list. {_HOW}"
    wanted = f"expected the indices 0 to {len(there) - 1}; got {there[0]} to {there[-1]}"
    if there == list(range(1, len(there) + 1)):
        return (
            f"{wanted}. They may count from 1, or be the names of folders, which ImageFolder sorts "
            f"as text (1, 10, 100, 2): the file does not say. {_HOW}, or give the data folder"
        )
    return f"{wanted}. {_HOW}"


def _name(value: object, where: str) -> str:
    if isinstance(value, list | tuple) and len(value) == 2 and _WORDNET.fullmatch(str(value[0])):
        value = value[1]  # Keras's (WordNet id, name)
    if isinstance(value, bool):
        raise WeightsError(f"{where}: a name was read as {value}; put it in quotes")
    if not isinstance(value, str | int):
        kind = type(value).__name__
        raise WeightsError(f"{where}: a name is text; got a {kind}: {value!r:.60}. {_HOW}")
    return str(value)


def _of_rows(rows: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Of ``{"id": 0, "name": "daisy"}``."""
    keys = [str(key) for key in rows[0]]
    index = [key for key in keys if key.lower() in _INDEX]
    name = [key for key in keys if key.lower() in _NAME]
    if len(index) != 1 or len(name) != 1 or any(set(row) != set(rows[0]) for row in rows):
        raise WeightsError(
            f"{where}: expected an index ({', '.join(_INDEX[:3])}) and a name ({', '.join(_NAME)}) "
            f"in each row; got {', '.join(keys)}. {_HOW}"
        )
    return _of_pairs([(row[index[0]], str(row[name[0]])) for row in rows], where)


def _of_table(text: str, where: str, delimiter: str) -> list[str]:
    first = text.partition("\n")[0]
    delimiter = delimiter or max(",;\t", key=first.count)
    rows = [
        [cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)
    ]
    rows = [row for row in rows if any(row)]
    if not rows:
        raise WeightsError(f"{where} is empty; expected class names")
    known = (*_INDEX, *_NAME)
    header = rows[0] if any(cell.lower() in known for cell in rows[0]) else None
    if header is not None:
        columns = [row for row in rows[1:] if len(row) == len(header)]
        if len(columns) < len(rows) - 1 or not columns:
            raise WeightsError(f"{where}: not every row has the columns {', '.join(header)}")
        if len(header) > 1:
            return _of_rows([dict(zip(header, row, strict=True)) for row in columns], where)
        return check_names([row[0] for row in columns], where)
    if all(len(row) == 1 for row in rows):
        return _of_lines([row[0] for row in rows], where)
    if all(len(row) == 2 for row in rows):
        return _of_pairs([(row[0], row[1]) for row in rows], where)
    raise WeightsError(f"{where}: expected columns `index` and `name`. {_HOW}")


def _of_lines(lines: list[str], where: str) -> list[str]:
    """Of one name a line: alone, or beside its number or its WordNet id."""
    if not lines:
        raise WeightsError(f"{where} is empty; expected class names")
    if all(re.match(r"- \S", line) for line in lines):  # a list in YAML
        return _of_lines([line[2:].strip() for line in lines], where)
    if all(re.match(rf"{_WORDNET.pattern}[\s,:]+\S", line) for line in lines):
        return check_names([re.split(r"[\s,:]+", line, maxsplit=1)[1] for line in lines], where)
    for pattern, index, name in ((r"(\d+)[\s,;:=]+(\S.*)", 1, 2), (r"(.*\S)[\s,;:=]+(\d+)", 2, 1)):
        found = [re.fullmatch(pattern, line) for line in lines]
        pairs = [(match[index], match[name]) for match in found if match]
        numbers = sorted(int(number) for number, _ in pairs)
        counted = numbers in (list(range(len(lines))), list(range(1, len(lines) + 1)))
        if counted and len({text for _, text in pairs}) == len(lines) > 1:
            return _of_pairs(pairs, where)
    return check_names(lines, where)

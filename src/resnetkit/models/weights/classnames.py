"""Read class names for `resnet convert` from files and values, in the order of the logits.

Training takes its classes from folder names; see `resnetkit.data.folder`.

Every accepted form says which name belongs to which logit. Nothing is sorted or guessed.
"""

from __future__ import annotations

import ast
import codecs
import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...data.paths import is_system
from ...data.tree import named_splits
from ...errors import WeightsError

WRAPPERS = (
    *("id2label", "idx_to_class", "classes", "CLASSES", "class_names", "names", "label_names"),
    *("class_to_idx", "label2id"),
)
_INDEX = ("index", "idx", "id", "class_id", "class_index", "class_idx", "label_id", "category_id")
_NAME = ("name", "class", "class_name", "label", "category", "classname")
_WORDNET = re.compile(r"n\d{8}")
_ADVICE = "Write one name per line, in the order of the logits"


def read_classes(path: Path) -> list[str]:
    """Return the class names in a file or folder, in the order of the logits.

    Args:
        path: one of

            - JSON, YAML or a printed Python value: a list, ``{"0": "daisy"}``, ``{"daisy": 0}``,
              Keras's ``{"0": ["n01440764", "tench"]}``, or one of these under a key such as
              ``id2label`` or ``class_to_idx``;
            - CSV with an index and a name, or only a name;
            - text with one name per line; the lines may be numbered from 0;
            - a folder whose sub-folders are the classes, in the order of torchvision's
              ``ImageFolder``: sorted as text.

    Raises:
        WeightsError: there is no such file, or it does not say which name belongs to which logit.
    """
    if path.is_dir():
        return _parse_folder(path)
    if not path.is_file():
        raise WeightsError(
            f"{path} is not a file; expected class names as JSON, YAML, CSV or one per line, or "
            "the folder of the training data"
        )
    try:
        contents = path.read_bytes()
        is_utf_16 = contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = contents.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise WeightsError(f"cannot read class names from {path}: {error}") from error
    suffix = path.suffix.lower()
    where = str(path)
    if suffix == ".json" or text.lstrip().startswith(("{", "[")):
        return parse_names(_parse_value(text, where, strict=suffix == ".json"), where)
    if suffix in (".yaml", ".yml"):
        try:
            return parse_names(yaml.safe_load(text), where)
        except yaml.YAMLError as error:
            raise WeightsError(f"{path} is not valid YAML: {error}") from error
    if suffix in (".csv", ".tsv"):
        return _parse_table(text, where, delimiter="\t" if suffix == ".tsv" else "")
    return _parse_lines([line.strip() for line in text.splitlines() if line.strip()], where)


def parse_names(value: object, where: str) -> list[str]:
    """Return the class names in a value from JSON, YAML or a checkpoint; see `read_classes`.

    Args:
        value: any of the forms that `read_classes` lists for JSON.
        where: name of the value, for messages.

    Raises:
        WeightsError: the value has none of these forms.
    """
    if isinstance(value, Mapping):
        keys = [key for key in WRAPPERS if isinstance(value.get(key), Mapping | list | tuple)]
        if keys:
            found = {key: parse_names(value[key], f"{where}, {key}") for key in keys}
            if any(names != found[keys[0]] for names in found.values()):
                raise WeightsError(f"{where}: {' and '.join(keys)} name the classes differently")
            return found[keys[0]]
        return _parse_pairs(list(value.items()), where)
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, str | int) for item in value):
            return check_names([_parse_name(item, where) for item in value], where)
        if all(isinstance(item, list | tuple) and len(item) == 2 for item in value):
            if all(_WORDNET.fullmatch(str(item[0])) for item in value):
                return check_names([_parse_name(item[1], where) for item in value], where)
            return _parse_pairs([(item[0], item[1]) for item in value], where)
        if all(isinstance(item, Mapping) for item in value):
            return _parse_rows(value, where)
    raise WeightsError(f"{where}: expected class names by index or a list. {_ADVICE}")


def select_names(
    stored: Mapping[str, object], count: int, source: str
) -> tuple[list[str] | None, list[str]]:
    """Return the class names stored in a checkpoint (None if there are none), and notes.

    Args:
        stored: values by the key they are stored under.
        count: the number of classes; values with a different number are left out.
        source: name of the checkpoint, for messages.

    Raises:
        WeightsError: two keys give different names.
    """
    found: dict[str, list[str]] = {}
    notes = []
    for key, value in stored.items():
        try:
            names = parse_names(value, key)
        except WeightsError as error:
            notes.append(f"skipped the class names under {key!r}: {error}")
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
            f"{source}: {' and '.join(found)} name the classes differently. Pass --classes"
        )
    return found[first], [*notes, f"used the class names under {first!r}"]


def check_names(names: Sequence[str], where: str) -> list[str]:
    """Return the names, or raise if they do not identify classes.

    Args:
        names: in the order of the logits.
        where: where the names come from, for messages.

    Raises:
        WeightsError: a name is empty, or two are equal.
    """
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise WeightsError(f"{where}: the name of class {index} is {name!r}; expected text")
        if first.setdefault(name, index) != index:
            raise WeightsError(
                f"{where}: classes {first[name]} and {index} are both called {name!r}; every class "
                "needs a unique name"
            )
    return list(names)


def _parse_folder(folder: Path) -> list[str]:
    def list_folders(parent: Path) -> list[str]:
        with os.scandir(parent) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not is_system(e.name))

    names = list_folders(folder)
    splits = named_splits(folder, names)
    training = [name for name, split in splits.items() if split == "train"]
    if len(training) == 1 and len(set(splits.values())) > 1:
        folder = folder / training[0]
        names = list_folders(folder)
        if names == training:  # some archives unpack to seg_train/seg_train
            folder = folder / training[0]
            names = list_folders(folder)
    if not names:
        raise WeightsError(f"{folder} has no sub-folders, so it names no classes")
    return names


def _parse_value(text: str, where: str, *, strict: bool) -> object:
    """Parse JSON or a printed Python value; if ``strict``, the error mentions only JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            return ast.literal_eval(text.strip())  # as print() shows a dictionary
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            what = "JSON" if strict else "JSON or a printed Python value"
            raise WeightsError(
                f"{where}: expected class names by index or a list, as {what} ({error})"
            ) from error


def _parse_pairs(pairs: list[tuple[Any, Any]], where: str) -> list[str]:
    """Return the names in ``(index, name)`` or ``(name, index)`` pairs."""
    left = [_parse_index(key) for key, _ in pairs]
    right = [_parse_index(value) for _, value in pairs]
    right_is_index = None not in right and _are_complete(right)
    left_is_index = None not in left and _are_complete(left)
    same_type = len({type(side) for pair in pairs for side in pair}) == 1
    if right_is_index and left_is_index and left != right and same_type:
        raise WeightsError(
            f"{where}: both sides are numbers from 0 to {len(pairs) - 1}, so either could be the "
            f"index. {_ADVICE}"
        )
    if right_is_index and not (left_is_index and isinstance(pairs[0][0], int)):
        found = {index: key for (key, _), index in zip(pairs, right, strict=True)}
    elif left_is_index:
        found = {index: value for (_, value), index in zip(pairs, left, strict=True)}
    else:
        raise WeightsError(f"{where}: {_describe_bad_indices(left if None not in left else right)}")
    return check_names(
        [_parse_name(found[i], f"{where}, class {i}") for i in range(len(found))], where
    )


def _parse_index(value: object) -> int | None:
    """Return the index that an int or a string of digits stands for; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return int(value) if re.fullmatch(r"\d+", str(value).strip()) else None


def _are_complete(indices: Sequence[int | None]) -> bool:
    """Return whether the indices are 0 to n - 1, in any order."""
    return sorted(i for i in indices if i is not None) == list(range(len(indices)))


def _describe_bad_indices(indices: Sequence[int | None]) -> str:
    present = sorted(i for i in indices if i is not None)
    if not present or len(present) < len(indices):
        return f"expected class names by index or a list. {_ADVICE}"
    problem = f"expected the indices 0 to {len(present) - 1}; got {present[0]} to {present[-1]}"
    if present == list(range(1, len(present) + 1)):
        return (
            f"{problem}. The numbers may start at 1 or be folder names, which ImageFolder sorts as "
            f"text (1, 10, 100, 2); the file does not say. {_ADVICE}, or pass the data folder"
        )
    return f"{problem}. {_ADVICE}"


def _parse_name(value: object, where: str) -> str:
    if isinstance(value, list | tuple) and len(value) == 2 and _WORDNET.fullmatch(str(value[0])):
        value = value[1]  # Keras: (WordNet id, name)
    if isinstance(value, bool):
        raise WeightsError(f"{where}: a name was read as {value}; put it in quotes")
    if not isinstance(value, str | int):
        kind = type(value).__name__
        raise WeightsError(f"{where}: a name must be text; got a {kind}: {value!r:.60}. {_ADVICE}")
    return str(value)


def _parse_rows(rows: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Return the names in rows such as ``{"id": 0, "name": "daisy"}``."""
    keys = [str(key) for key in rows[0]]
    index_keys = [key for key in keys if key.lower() in _INDEX]
    name_keys = [key for key in keys if key.lower() in _NAME]
    same_keys = all(set(row) == set(rows[0]) for row in rows)
    if len(index_keys) != 1 or len(name_keys) != 1 or not same_keys:
        raise WeightsError(
            f"{where}: expected an index ({', '.join(_INDEX[:3])}) and a name ({', '.join(_NAME)}) "
            f"in each row; got {', '.join(keys)}. {_ADVICE}"
        )
    pairs = [(row[index_keys[0]], str(row[name_keys[0]])) for row in rows]
    return _parse_pairs(pairs, where)


def _parse_table(text: str, where: str, *, delimiter: str) -> list[str]:
    """Return the names in CSV; delimiter "" means the most frequent of comma, semicolon, tab."""
    first = text.partition("\n")[0]
    delimiter = delimiter or max(",;\t", key=first.count)
    try:
        table = list(csv.reader(text.splitlines(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise WeightsError(f"{where} is not a table of class names: {error}. {_ADVICE}") from error
    rows = [[cell.strip() for cell in row] for row in table]
    rows = [row for row in rows if any(row)]
    if not rows:
        raise WeightsError(f"{where} is empty; expected class names")
    known = (*_INDEX, *_NAME)
    header = rows[0] if any(cell.lower() in known for cell in rows[0]) else None
    if header is not None:
        header = ["index", *header[1:]] if header[0] == "" else header  # as pandas writes it
        complete = [row for row in rows[1:] if len(row) == len(header)]
        if len(complete) < len(rows) - 1 or not complete:
            raise WeightsError(f"{where}: not every row has the columns {', '.join(header)}")
        if len(header) > 1:
            return _parse_rows([dict(zip(header, row, strict=True)) for row in complete], where)
        return check_names([row[0] for row in complete], where)
    if all(len(row) == 1 for row in rows):
        return _parse_lines([row[0] for row in rows], where)
    if all(len(row) == 2 for row in rows):
        return _parse_pairs([(row[0], row[1]) for row in rows], where)
    raise WeightsError(f"{where}: expected columns `index` and `name`. {_ADVICE}")


def _parse_lines(lines: list[str], where: str) -> list[str]:
    """Return the names, one per line: the name alone, or with its number or WordNet id."""
    if not lines:
        raise WeightsError(f"{where} is empty; expected class names")
    if all(re.match(r"- \S", line) for line in lines):  # a YAML list
        return _parse_lines([line[2:].strip() for line in lines], where)
    if all(re.match(rf"{_WORDNET.pattern}[\s,:]+\S", line) for line in lines):
        return check_names([re.split(r"[\s,:]+", line, maxsplit=1)[1] for line in lines], where)
    for pattern, index, name in ((r"(\d+)[\s,;:=]+(\S.*)", 1, 2), (r"(.*\S)[\s,;:=]+(\d+)", 2, 1)):
        found = [re.fullmatch(pattern, line) for line in lines]
        pairs = [(match[index], match[name]) for match in found if match]
        numbers = sorted(int(number) for number, _ in pairs)
        is_count = numbers in (list(range(len(lines))), list(range(1, len(lines) + 1)))
        if is_count and len({text for _, text in pairs}) == len(lines) > 1:
            return _parse_pairs(pairs, where)
    return check_names(lines, where)

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from resnetkit.report import charts


def parse(svg):
    return ElementTree.fromstring(str(svg))


def test_line_points_match_their_values():
    line = charts.Line("val", "val", [1, 2, 3], [0.0, 0.5, 1.0])
    tree = parse(charts.line_chart([line], "epoch", percent=True))
    (drawn,) = tree.findall("polyline")
    points = [tuple(map(float, p.split(","))) for p in drawn.get("points").split()]
    assert points[0][0] == charts.LEFT
    assert points[2][0] == charts.WIDTH - charts.RIGHT
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.1)
    assert points[2][1] < points[0][1]  # y grows upwards
    assert {"0%", "20%", "100%", "1", "2", "3"} <= {t.text for t in tree.findall("text")}


@pytest.mark.parametrize(
    "values", [[1.0], [2.0, 2.0], [math.nan, 1.0], [math.inf, math.nan], [1e-9, 3e-9], [1e6, 0.1]]
)
def test_odd_values_are_drawn_or_skipped(values):
    line = charts.Line("x", "val", list(range(1, len(values) + 1)), values)
    svg = charts.line_chart([line], "epoch", percent=False)
    assert "nan" not in svg
    assert "inf" not in svg
    if svg:
        parse(svg)


def test_the_matrix_holds_its_counts():
    counts = np.array([[5, 1, 0], [0, 0, 2], [0, 0, 9]])
    tree = parse(charts.confusion_chart(counts, ["a<b", "花" * 40, "\x00c"]))
    cells = {rect.get("data-c"): rect for rect in tree.findall("rect") if rect.get("data-c")}
    assert set(cells) == {"0,0,5", "0,1,1", "1,2,2", "2,2,9"}
    assert cells["0,0,5"].get("class") == "hit"
    assert cells["1,2,2"].get("class") == "miss"
    assert float(cells["2,2,9"].get("fill-opacity")) == 1
    labels = [t.text for t in tree.findall("text") if t.find("title") is not None]
    assert labels.count("a<b") == 2
    assert any(name.endswith("…") for name in labels)


@pytest.mark.parametrize(("size", "smallest"), [(33, 12), (60, 12), (100, 7.5)])
def test_labels_of_up_to_a_hundred_classes_fit(size, smallest):
    tree = parse(
        charts.confusion_chart(np.eye(size, dtype=int), [f"class {i}" for i in range(size)])
    )
    labels = [text for text in tree.findall("text") if text.find("title") is not None]
    assert len(labels) == 2 * size
    cell = float(tree.find("rect").get("width")) / size
    assert smallest <= float(labels[0].get("font-size")) < cell
    assert float(tree.get("width")) < 1010  # the width of the page
    assert not tree.findall("text[@class='n']")


def test_a_large_matrix_has_no_labels_and_a_huge_one_is_not_drawn():
    svg = charts.confusion_chart(np.eye(200, dtype=int), [f"class {i}" for i in range(200)])
    assert "class 7" not in svg
    assert len(re.findall("data-c", svg)) == 200
    assert charts.confusion_chart(np.eye(1000, dtype=int), ["x"] * 1000) is None


def test_the_reliability_chart_has_a_bar_for_each_bin_with_images():
    bins = [{"from": 0, "to": 0.5, "pictures": 0, "confidence": None, "accuracy": None}]
    bins.append({"from": 0.5, "to": 1, "pictures": 8, "confidence": 0.9, "accuracy": 0.75})
    tree = parse(charts.reliability_chart(bins))
    (group,) = tree.findall("g")
    assert group.find("title").text == "answers: 8, mean probability: 90.0%, correct: 75.0%"
    assert float(group.find("rect").get("height")) == pytest.approx(0.75 * 290)

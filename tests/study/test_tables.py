"""The paper's tables, derived from built networks and compared with published values."""

from __future__ import annotations

import json

import pytest
import torchvision
from torch import nn

from resnetkit.study import published, tables
from resnetkit.study.table import Row, Table


def rows(table):
    return {row.what: row for row in table.rows}


def test_every_shape_and_depth_of_table_1_is_the_papers():
    table = tables.table1_layers()
    assert len(table.rows) == 5 * 5  # five networks: their depth and four stages
    assert all(row.agrees for row in table.rows)
    assert rows(table)["152-layer: conv4_x"].derived == "14 px, 1x1,256 3x3,256 1x1,1024 x36"


def test_multiply_adds_equal_torchvisions():
    """torchvision counted its values with another program when publishing the weights."""
    derived = rows(tables.table1_macs())
    for depth in (18, 34, 50, 101, 152):
        weights = getattr(torchvision.models, f"ResNet{depth}_Weights").IMAGENET1K_V1
        mine = derived[f"{depth}-layer, V1.5" if depth >= 50 else f"{depth}-layer"].derived
        assert mine == pytest.approx(weights.meta["_ops"], abs=0.001)
    figure = rows(tables.figure3())
    for name, enum in (("VGG-16", "VGG16_Weights"), ("VGG-19", "VGG19_Weights")):
        meta = getattr(torchvision.models, enum).IMAGENET1K_V1.meta
        assert figure[name].derived == pytest.approx(meta["_ops"], abs=0.001)
        if name == "VGG-19":
            millions = figure["parameters: VGG-19, millions"].derived
            assert millions == pytest.approx(meta["num_params"] / 1e6)


def test_rows_that_differ_from_the_paper():
    """A row that changes needs a new explanation, in the notes and in docs/resnet.md."""
    everything = [row for table in tables.tables() for row in table.rows]
    assert [row.what for row in everything if row.agrees is False] == [
        "34-layer",
        "50-layer",
        "VGG-16",
    ]
    macs, figure = rows(tables.table1_macs()), rows(tables.figure3())
    without = macs["34-layer, without its projections"].derived
    assert round(without, 1) == float(published.TABLE1_GMACS[34])
    assert without == figure["34-layer residual, option A"].derived
    convolutions = figure["VGG-16, only convolutions"].derived
    assert f"{convolutions:.1f}" == published.SECTION41_GMACS["VGG-16"]


def test_parameters_of_the_cifar_nets_by_hand():
    """Three stages of 2n 3x3 layers with 16, 32, 64 channels; scale and bias after each."""

    def by_hand(depth):
        n = (depth - 2) // 6
        stem = 3 * 16 * 9 + 2 * 16
        first = 2 * n * (16 * 16 * 9 + 2 * 16)
        second = 16 * 32 * 9 + (2 * n - 1) * 32 * 32 * 9 + 2 * n * 2 * 32
        third = 32 * 64 * 9 + (2 * n - 1) * 64 * 64 * 9 + 2 * n * 2 * 64
        return stem + first + second + third + 64 * 10 + 10

    for depth, row in zip(
        published.TABLE6_PARAMETERS, tables.table6_parameters().rows, strict=True
    ):
        assert row.derived * 1e6 == pytest.approx(by_hand(depth), abs=0.5)
        assert row.agrees


def test_costs_of_the_blocks_by_hand():
    derived = {row.what: row.derived for row in tables.blocks().rows}
    pixels = 56 * 56
    for name, weights, norms in (
        ("BasicBlock, 64 channels", 2 * 64 * 64 * 9, 2 * 2 * 64),
        (
            "Bottleneck, 256 channels, 64 inside",
            2 * 256 * 64 + 64 * 64 * 9,
            2 * (64 + 64 + 256),
        ),
        ("BasicBlock, 256 channels", 2 * 256 * 256 * 9, 2 * 2 * 256),
    ):
        assert derived[f"{name}: millions of multiply-adds"] == weights * pixels / 1e6
        assert derived[f"{name}: parameters"] == weights + norms


def test_derived_numbers_follow_the_networks(monkeypatch):
    """No derived value is a literal: a different network gives different values."""
    real = tables.get_skeleton
    monkeypatch.setattr(tables, "get_skeleton", lambda name, **options: real("resnet18"))
    assert {row.derived for row in tables.table1_macs().rows if "projections" not in row.what} == {
        rows(tables.table1_macs())["18-layer"].derived
    }
    assert not all(row.agrees for row in tables.table1_layers().rows)


def test_a_stage_of_different_blocks_is_refused():
    stage = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(4, 5, 1)))
    with pytest.raises(ValueError, match=r"3x3,4.*1x1,5|1x1,5.*3x3,4"):
        tables.structure(stage)


def test_a_table_as_text_and_as_json():
    table = Table("T", (Row("a", 1.2345, "1.2"), Row("b", 7), Row("c", "x", "y")), ("n",), digits=2)
    assert str(table).splitlines()[3:] == [
        "a     1.23        1.2       +0.03   yes",
        "b        7",
        "c        x          y                no",
        "Note: n",
    ]
    content = json.loads(json.dumps(table.to_dict()))
    assert content["rows"][0] == {
        "what": "a",
        "derived": 1.2345,
        "published": "1.2",
        "difference": pytest.approx(0.0345),
        "same": True,
    }
    assert content["rows"][1]["same"] is None

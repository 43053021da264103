"""Write a network with its preprocessing to a file for a runtime."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..inference.engines import fold_batch_norms
from .artefact import GOLDEN, MANIFEST, OUTPUTS, STAGES, GoldenImage, Manifest, golden_to_json
from .graph import ExportedModel


def write(
    path: Path, network: nn.Module, manifest: Manifest, golden: Sequence[GoldenImage]
) -> None:
    """Write an exported file; its extension determines the runtime.

    Args:
        path: the file.
        network: maps normalized images to logits; in eval mode, on the CPU.
        manifest: the file's description of itself.
        golden: the file's golden images.
    """
    writers: dict[str, Callable[..., None]] = {
        ".onnx": _write_onnx,
        ".xml": _write_openvino,
        ".pt2": _write_torch,
    }
    with _quiet():
        writers[path.suffix](path, network, manifest, golden)


def _program(
    network: nn.Module, manifest: Manifest, *, stages: bool
) -> tuple[ExportedProgram, torch.Tensor]:
    """Return the program of the network with its preprocessing, and an example input."""
    resizes = manifest.entrance == "image"
    model = ExportedModel(
        fold_batch_norms(network), manifest.preprocessing, resizes=resizes, stages=stages
    ).eval()
    side = manifest.preprocessing.crop_size
    # Two images with unequal sides, because a size of 1 or two equal sizes would become constants.
    size = (side + 3, side + 5) if resizes else (side, side)
    example = torch.zeros(2, *size, manifest.input_channels, dtype=torch.uint8)
    dynamic = {0: Dim("N", min=1)}
    if resizes:
        dynamic |= {1: Dim("H", min=1), 2: Dim("W", min=1)}
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=(dynamic,)), example


def _write_onnx(
    path: Path, network: nn.Module, manifest: Manifest, golden: Sequence[GoldenImage]
) -> None:
    program, example = _program(network, manifest, stages=True)
    exported = torch.onnx.export(
        program,
        (example,),
        input_names=[manifest.entrance],
        output_names=[*OUTPUTS, *STAGES],
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = exported.model  # type: ignore[union-attr]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # paths and source code from this machine
    del model.graph.outputs[len(OUTPUTS) :]  # the values keep their names
    model.metadata_props.update({MANIFEST: manifest.to_json(), GOLDEN: golden_to_json(golden)})
    exported.save(path, external_data=False)  # type: ignore[union-attr]


def _write_openvino(
    path: Path, network: nn.Module, manifest: Manifest, golden: Sequence[GoldenImage]
) -> None:
    import openvino

    program, _ = _program(network, manifest, stages=True)
    shape = [-1, -1, -1, manifest.input_channels]
    if manifest.entrance == "crop":
        shape[1:3] = [manifest.preprocessing.crop_size] * 2
    # Older versions of OpenVINO know only the core operations.
    model = openvino.convert_model(program.run_decompositions(), input=[(shape, openvino.Type.u8)])
    model.inputs[0].get_tensor().set_names({manifest.entrance})
    for port, name in zip(model.outputs, OUTPUTS, strict=False):
        port.get_tensor().set_names({name})
    shown = model.outputs[len(OUTPUTS) :]
    names = {name: port.get_any_name() for name, port in zip(STAGES, shown, strict=True)}
    manifest = replace(manifest, stages=names)
    for result in model.get_results()[len(OUTPUTS) :]:
        model.remove_result(result)
    set_openvino_entries(model, manifest, golden)
    openvino.save_model(model, path, compress_to_fp16=False)


def set_openvino_entries(model: Any, manifest: Manifest, golden: Sequence[GoldenImage]) -> None:
    """Set an OpenVINO model's description of itself, in base64, because XML changes whitespace."""
    for key, text in ((MANIFEST, manifest.to_json()), (GOLDEN, golden_to_json(golden))):
        model.set_rt_info(base64.b64encode(text.encode()).decode(), key.replace(".", "_"))


def _write_torch(
    path: Path, network: nn.Module, manifest: Manifest, golden: Sequence[GoldenImage]
) -> None:
    with_stages, _ = _program(network, manifest, stages=True)
    names = [spec.arg.name for spec in with_stages.graph_signature.output_specs]
    manifest = replace(manifest, stages=dict(zip(STAGES, names[len(OUTPUTS) :], strict=True)))
    program, _ = _program(network, manifest, stages=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths and source code from this machine
    texts = {f"{MANIFEST}.json": manifest.to_json(), f"{GOLDEN}.json": golden_to_json(golden)}
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=texts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings and output."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

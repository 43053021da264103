"""Run an exported file with its runtime: ONNX Runtime, OpenVINO or PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np

from ..distribution import full_install_command, install_command
from ..errors import ArtefactError, RecipeError
from ..limits import cores
from . import protobuf
from .artefact import OUTPUTS, Artefact

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Maps images ``(N, H, W, C)`` uint8 to the requested values by name. It is thread-safe."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}


def start(
    artefact: Artefact,
    stages: Sequence[str] = (),
    threads: int | None = None,
    *,
    optimized: bool = True,
) -> Run:
    """Start the runtime of an exported file.

    Args:
        artefact: the file.
        stages: which of `artefact.STAGES` to return in addition to logits and probabilities.
        threads: compute threads; by default one per available CPU.
        optimized: whether the runtime may replace operations with faster ones. If False, ONNX
            Runtime computes 8-bit layers in float, as the file specifies them.

    Raises:
        RecipeError: the runtime is not installed.
        ArtefactError: the runtime cannot read the file, or the file has no such input, output or
            stage.
    """
    package = PACKAGES[artefact.runtime]
    if find_spec(package) is None:
        torch = package == "torch"
        command = full_install_command() if torch else install_command(artefact.runtime)
        raise RecipeError(f"{artefact.path} needs {package}: {command}")
    starters = {"onnx": _start_onnx, "openvino": _start_openvino, "torch": _start_torch}
    count = threads or cores()
    with _named(artefact):
        compute = starters[artefact.runtime](artefact, (*OUTPUTS, *stages), count, optimized)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with _named(artefact):
            values = compute(images)
        _check_shapes(artefact, values, len(images))
        return values

    return run


def _check_shapes(artefact: Artefact, values: dict[str, np.ndarray], images: int) -> None:
    """Raise if the shapes of the values do not match the manifest."""
    manifest = artefact.manifest
    size = manifest.preprocessing.crop_size
    crop = (images, manifest.preprocessing.channels, size, size)
    classes = (images, len(manifest.classes))
    shapes = dict.fromkeys(OUTPUTS, classes) | dict.fromkeys(("cropped", "normalized"), crop)
    for name, value in values.items():
        shape = shapes.get(name, (images, *value.shape[1:]))
        if value.shape != shape:
            raise ArtefactError(
                f"{artefact.path}: {name} has the shape {value.shape}, expected {shape}. The file "
                "may be damaged; export the model again"
            )


@contextmanager
def _named(artefact: Artefact) -> Iterator[None]:
    """Turn a runtime's exceptions into an error that names the file."""
    try:
        yield
    except (ArtefactError, MemoryError):
        raise
    except Exception as error:  # each runtime has its own exceptions
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise ArtefactError(
            f"{artefact.path}: {PACKAGES[artefact.runtime]} cannot run it ({reason[:300]}). The "
            "file may be damaged; export the model again"
        ) from error


def _start_onnx(artefact: Artefact, names: Sequence[str], threads: int, optimized: bool) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Refuse ONNX Runtime's own format, which `read_artefact` cannot check.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    tensors = [artefact.manifest.stages.get(name, name) for name in names]
    source: Any = str(artefact.path)
    if len(names) > len(OUTPUTS):
        # Repeated messages are merged: this adds outputs to the graph (field 7), each a
        # ValueInfoProto (field 12) that only has a name (field 1).
        extra = b"".join(
            protobuf.message(12, protobuf.message(1, name.encode()))
            for name in tensors[len(OUTPUTS) :]
        )
        source = artefact.path.read_bytes() + protobuf.message(7, extra)
    session = onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    inputs = [item.name for item in session.get_inputs()]
    if inputs != [artefact.manifest.entrance]:
        raise ArtefactError(
            f"{artefact.path} has the inputs {inputs}, not {artefact.manifest.entrance}"
        )

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(tensors, {inputs[0]: images}), strict=True))

    return run


def _start_openvino(artefact: Artefact, names: Sequence[str], threads: int, optimized: bool) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(artefact.path)
    stages = artefact.manifest.stages
    for name in names[len(OUTPUTS) :]:
        model.add_outputs(stages.get(name, name))
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    ports = {
        name: compiled.output(name if name in OUTPUTS else stages.get(name, name)) for name in names
    }
    request = compiled.create_infer_request()
    lock = Lock()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with lock:  # a busy request rejects other callers, and a call overwrites earlier values
            values = request.infer({artefact.manifest.entrance: images}, share_inputs=True)
            return {name: np.array(values[port]) for name, port in ports.items()}

    return run


def _start_torch(artefact: Artefact, names: Sequence[str], threads: int, optimized: bool) -> Run:
    import torch

    from ..runtime import restored_threads
    from .program import read_program

    module = read_program(artefact.path).module()
    nodes = {artefact.manifest.stages.get(name, ""): name for name in names[len(OUTPUTS) :]}
    known = {node.name for node in module.graph.nodes}
    missing = [name for node, name in nodes.items() if node not in known]
    if missing:
        raise ArtefactError(f"{artefact.path} does not expose the stage {', '.join(missing)}")

    class Recorder(torch.fx.Interpreter):
        """Runs the graph and keeps the values of the stages."""

        def __init__(self) -> None:
            super().__init__(module)
            self.found: dict[str, np.ndarray] = {}

        def run_node(self, node: torch.fx.Node) -> Any:
            value = super().run_node(node)
            if node.name in nodes:
                self.found[nodes[node.name]] = value.numpy()
            return value

    lock = Lock()  # the number of threads, which is set and restored, is process-wide

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        inputs = torch.from_numpy(images)
        recorder = Recorder()
        with lock, restored_threads(), torch.inference_mode():
            torch.set_num_threads(threads)
            answers = recorder.run(inputs) if nodes else module(inputs)
        values = {name: value.numpy() for name, value in zip(OUTPUTS, answers, strict=True)}
        return {**values, **recorder.found}

    return run

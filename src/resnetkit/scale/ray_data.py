"""Bulk prediction on Ray Data: images -> a folder of Parquet parts."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..distribution import install_command
from ..errors import MissingPackageError, ModelFileError, RecipeError, ResnetkitError
from ..export.artefact import is_artefact
from ..inference.prediction import FEW
from ..limits import cores
from ..progress import bar
from ..storage import sha256
from .batches import BatchPredictor
from .listing import Item, cut_blocks, open_block
from .parts import Parts

if TYPE_CHECKING:
    import pyarrow as pa

OBJECT_STORE = 256 * 2**20
"""Size of Ray's shared memory on this machine, in bytes. It holds paths and rows, not images."""

MOST_CPUS = 8
"""Maximum number of CPUs per actor: a residual network gains little from more threads."""

FAILURE = "failure"
"""The only column in a table that reports an actor's error."""


class Written(NamedTuple):
    """The number of rows in a folder of parts at the end, and how many of them have an error."""

    rows: int
    failed: int


def predict_on_ray(
    predictor: BatchPredictor,
    items: Iterable[Item],
    out: Path,
    *,
    address: str = "ray",
    seconds: float = 30.0,
) -> Written:
    """Predict images on Ray, and write one row per image to a folder of Parquet parts.

    Images that already have a row in the folder are skipped, so the same call continues a run that
    was stopped or killed. Rows have the columns ``source`` and ``version`` and those of
    `BatchPredictor.answer_schema`, and are in no particular order.

    Args:
        predictor: the model and its settings.
        items: the images; see `listing.list_items`. Each host must find the files at these paths.
        out: the folder for the parts, on this machine.
        address: ``ray`` starts Ray on this machine and stops it afterwards; ``ray://host:port``
            connects to a cluster.
        seconds: maximum time that rows wait for more rows before they are written. A killed run
            loses at most the rows that arrived within this time.

    Raises:
        OutputError: the folder is in use, or has rows from another model or with other settings.
        RecipeError: the address is not valid.
        MissingPackageError: Ray is not installed.
        ResnetkitError: Ray failed. The rows received so far are written.
    """
    import pyarrow as pa

    address = resolve_address(address)
    predictor.check()
    model = Path(predictor.model_file).absolute()
    settings = asdict(predictor)
    for unrelated in ("model_file", "column", "device", "threads", "workers", "many"):
        del settings[unrelated]
    settings["model"] = sha256(model)
    key = [pa.field("source", pa.string()), pa.field("version", pa.string())]
    schema = pa.schema([*key, *predictor.answer_schema()])
    with Parts(out, settings, schema, seconds) as parts:
        before = parts.rows
        blocks = list(cut_blocks(items, parts.done))
        new = sum(map(len, blocks))
        if new:
            many = before + new >= FEW  # as `resnet predict` decides for the same images
            predictor = replace(predictor, model_file=model, many=many)
            with (
                _connected(address) as ray,
                _clear_errors(ray),
                bar("predicting", before + new, done=before) as advance,
            ):
                has_row = np.zeros(new, bool)
                work = (predictor, settings["model"], os.getcwd(), blocks)
                for table in _run(*work) if address == "local" else _run_remote(ray, *work):
                    if FAILURE in table.column_names:
                        raise ResnetkitError(table[FAILURE][0].as_py())
                    numbers = table["number"].to_numpy()
                    if has_row[numbers].any():  # never seen, but a second row would go unnoticed
                        raise ResnetkitError("Ray returned a block twice. Run the command again")
                    has_row[numbers] = True
                    parts.add(table)
                    for _ in range(len(table)):
                        advance("")
                if not has_row.all():
                    raise ResnetkitError(
                        f"Ray returned no row for {np.count_nonzero(~has_row):,} images. Run the "
                        "same command again to predict them"
                    )
    return Written(parts.rows, parts.failed)


def resolve_address(text: str) -> str:
    """Return the address that ``ray.init`` takes for ``ray`` or ``ray://host:port``.

    Raises:
        RecipeError: the text is neither.
    """
    if text == "ray":
        return "local"
    if re.fullmatch(r"ray://[^/:]+:\d+|ray://\[[0-9a-fA-F:]+\]:\d+", text) is None:
        raise RecipeError(
            f"--on must be ray or ray://HOST:PORT, such as ray://head:10001; got {text}"
        )
    return text


class _Actor:
    """A callable that Ray Data runs on each block, in a process that keeps its engine loaded.

    Args:
        predictor: the model and its settings.
        digest: the SHA-256 that the model file must have on this host.
        folder: the folder where the command was run, for relative paths.
    """

    def __init__(self, predictor: BatchPredictor, digest: str, folder: str) -> None:
        self._predictor = predictor
        self._digest: str | None = digest
        # The command line sets this before it loads PyTorch; a cluster's workers do not inherit it.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        with contextlib.suppress(OSError):  # another host may not have this folder
            os.chdir(folder)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return a block's rows, or a table with the error, as Ray keeps only an error's text."""
        import pyarrow as pa

        try:
            return self._answer(block)
        except ResnetkitError as error:
            return pa.table({FAILURE: [str(error)]})

    def _answer(self, block: pa.Table) -> pa.Table:
        if self._digest is not None:
            check_model(Path(self._predictor.model_file), self._digest)
            self._digest = None
        answers = self._predictor.answer(open_block(block))
        rows = block.select(["number", "source", "version"])
        for name in answers.column_names:
            rows = rows.append_column(name, answers[name])
        return rows


def check_model(path: Path, digest: str) -> None:
    """Check that this host has the same model file as the host where the command was run.

    Raises:
        ModelFileError: the file is missing or different.
    """
    found = sha256(path) if path.is_file() else ""
    if found != digest:
        problem = f"has the SHA-256 {found[:12]}, not {digest[:12]}" if found else "does not exist"
        raise ModelFileError(
            f"{path} on host {socket.gethostname()} {problem}. Copy the model file to the same "
            "path on every host"
        )


def _run(
    predictor: BatchPredictor, digest: str, folder: str, blocks: list[pa.Table]
) -> Iterator[pa.Table]:
    """Yield the rows for the blocks, in any order."""
    ray = _import_ray()
    cpus, gpus, actors = _shape_actors(ray, predictor)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_blocks(blocks).map_batches(
        _Actor,
        fn_constructor_args=(predictor, digest, folder),
        batch_size=None,  # one block at a time
        batch_format="pyarrow",
        num_cpus=cpus,
        num_gpus=gpus or None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, len(blocks))),
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


class _Remote:
    """Runs `_run` in an actor on the cluster: Ray Data does not run in a mere client process."""

    def __init__(self, *arguments: Any) -> None:
        self._tables = _run(*arguments)

    def next_table(self) -> pa.Table | None:
        """Return the next rows; None at the end."""
        return next(self._tables, None)


def _run_remote(ray: Any, *arguments: Any) -> Iterator[pa.Table]:
    remote = ray.remote(num_cpus=0)(_Remote).remote(*arguments)
    while (table := ray.get(remote.next_table.remote())) is not None:
        yield table


def _shape_actors(ray: Any, predictor: BatchPredictor) -> tuple[int, int, int]:
    """Return the CPUs and GPUs of one actor, and how many actors the cluster has room for."""
    hosts = [
        (int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    on_gpu = predictor.device != "cpu" and not is_artefact(Path(predictor.model_file))
    gpus = sum(gpu for _, gpu in hosts)
    if on_gpu and gpus:
        return max(1, min(cpu // gpu for cpu, gpu in hosts if gpu)), 1, gpus
    smallest = min((cpu for cpu, _ in hosts if cpu), default=1)
    cpus = smallest // math.ceil(smallest / MOST_CPUS)
    return cpus, 0, max(1, sum(cpu // cpus for cpu, _ in hosts))


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to Ray, or start it on this machine; yield the module ``ray``.

    A program that is already connected keeps its connection.
    """
    with _ray_environment(local=address == "local"):
        ray = _import_ray()
        if ray.is_initialized():
            yield ray
            return
        handler = signal.getsignal(signal.SIGTERM)
        folder = tempfile.mkdtemp(prefix="resnet-", dir="/tmp" if os.path.isdir("/tmp") else None)
        settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address == "local":
            settings |= {
                "num_cpus": cores(),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE,
                "_temp_dir": folder,  # short: socket paths in it are limited to 107 bytes
            }
        try:
            try:
                ray.init(address, **settings)
            except Exception as error:  # Ray raises many types here, even plain Exception
                where = "start on this machine" if address == "local" else f"connect to {address}"
                raise ResnetkitError(f"Ray could not {where}: {error}") from error
            signal.signal(signal.SIGTERM, handler)  # Ray's handler would exit with code 1
            yield ray
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, handler)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ray_environment(local: bool) -> Iterator[None]:
    """Set the variables that Ray reads when it is imported and started; restore them on exit."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    if local:  # listen on 127.0.0.1 only: anyone who can reach Ray's ports can run code
        wanted |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        message = f"--on ray needs {error.name}: {install_command('ray')}"
        raise MissingPackageError(message) from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as exceptions
    return ray


@contextmanager
def _clear_errors(ray: Any) -> Iterator[None]:
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise ResnetkitError(
            f"Ray failed ({type(error).__name__}): {str(error).strip()}\nThe rows received so "
            "far are written. Run the same command again to continue"
        ) from error

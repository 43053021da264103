"""Inside another program, neither importing nor calling resnetkit changes global state.

Each test runs a program in a new process, with settings that are not the defaults.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import resnetkit

PROGRAM = r'''
import decimal, faulthandler, gc, importlib, json, locale, logging, multiprocessing, os, pathlib
import pkgutil, random, signal, socket, sys, threading, warnings

# What these libraries change themselves when they are imported is not ours.
import matplotlib
import numpy as np
import sklearn.metrics, sklearn.datasets
import torch, torch._dynamo
from PIL import Image, ImageFile

Image.init()
Image.MAX_IMAGE_PIXELS = 1000  # the images of this test have 1440 pixels
warnings.simplefilter("error", Image.DecompressionBombWarning)
os.umask(0o027)
torch.set_num_threads(2)
torch.set_float32_matmul_precision("high")
torch.backends.cudnn.benchmark_limit = 7
torch.manual_seed(11), np.random.seed(12), random.seed(13)
torch.rand(3), np.random.normal(), random.gauss(0, 1)
sys.setswitchinterval(0.007)
sys.setrecursionlimit(1234)
np.seterr(over="ignore")
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR1, lambda *_: None)
logging.getLogger().setLevel(logging.ERROR)
matplotlib.rcParams["font.size"] = 17.0


def mask():
    current = os.umask(0)
    os.umask(current)
    return current


def state():
    home, here = pathlib.Path.home(), pathlib.Path.cwd()
    found = {
        "warning filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "MAX_IMAGE_PIXELS": Image.MAX_IMAGE_PIXELS,
        "LOAD_TRUNCATED_IMAGES": ImageFile.LOAD_TRUNCATED_IMAGES,
        "Pillow's formats": (dict(Image.OPEN), dict(Image.SAVE), dict(Image.EXTENSION)),
        "umask": mask(),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "rng of torch": torch.get_rng_state().tolist(),
        "rng of numpy": np.random.get_state()[1].tolist() + list(np.random.get_state()[2:]),
        "rng of random": random.getstate(),
        "CUDA": torch.cuda.is_initialized(),
        "cudnn": {
            name: getattr(torch.backends.cudnn, name)
            for name in ("enabled", "benchmark", "benchmark_limit", "deterministic", "allow_tf32")
        },
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "bf16 sums": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "matmul precision": torch.get_float32_matmul_precision(),
        "mkldnn": (torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "anomalies": torch.is_anomaly_enabled(),
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "recompile_limit": torch._dynamo.config.recompile_limit,
        "start method": multiprocessing.get_start_method(allow_none=True),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "hooks": (sys.excepthook, threading.excepthook, sys.gettrace(), sys.getprofile()),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "sys.path": list(sys.path),
        "environment": dict(os.environ),
        "numpy errors": np.geterr(),
        "numpy prints": np.get_printoptions(),
        "torch prints": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "logger class": logging.getLoggerClass(),
        "matplotlib": (matplotlib.rcParams._get_backend_or_none(), matplotlib.rcParams.copy()),
        "pyplot": "matplotlib.pyplot" in sys.modules,
        "locale": locale.setlocale(locale.LC_ALL),
        "decimals": str(decimal.getcontext()),
        "sockets": socket.getdefaulttimeout(),
        "faults": faulthandler.is_enabled(),
        "folder": str(here),
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "Python's threads": {thread.name for thread in threading.enumerate()},
        "home": sorted(map(str, home.rglob("*"))),
        "files here": sorted(map(str, here.iterdir())),
    }
    if os.path.isdir("/proc/self/fd"):
        files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        opened = sorted(os.readlink(f) for f in files if os.path.exists(f))
        found["open files"] = [f for f in opened if not f.startswith(sys.prefix)]  # fonts
    return found


def shown(one, other):
    """Return as text what ``one`` has and ``other`` does not."""
    if isinstance(one, dict):
        return {key: str(one[key])[:200] for key in one if other.get(key, ...) != one[key]}
    if isinstance(one, list | set):
        return [str(each)[:200] for each in one if each not in other]
    return str(one)[:200]


def changes(before):
    after = state()
    return {
        key: ("before", shown(before[key], after[key]), "after", shown(after[key], before[key]))
        for key in after
        if before[key] != after[key]
    }
'''

IMPORTS = """
before = state()
import resnetkit
for module in pkgutil.walk_packages(resnetkit.__path__, "resnetkit."):
    importlib.import_module(module.name)
sys.stdout.write(json.dumps(changes(before)))
"""

CALLS = """
data, out = map(pathlib.Path, sys.argv[1:])
import resnetkit
from resnetkit.evaluation.explain import explain
from resnetkit.inference import bench
from resnetkit.models import get_model
from resnetkit.models.weights import modelfile

settings = dict(
    model="cifar_resnet20", model_options={"width": 8}, image_size=32, batch_size=8,
    mixup=0.2, val_split=0.25, workers=2,
)
before = state()
run = resnetkit.train(data, "fast", out=out / "run", epochs=2, **settings)
resumed = resnetkit.train(data, "fast", out=out / "run", epochs=2, resume=True, **settings)
assert resumed.metrics == run.metrics
images = sorted(data.rglob("*.png"))
found = resnetkit.evaluate(run.model, data, "all")
assert len(found.logits) == len(images)
predictor = resnetkit.load(run.model)
assert predictor(images[0]).class_name in predictor.classes
assert len(predictor(images)) == len(images)
assert not any(answer.error for answer in explain(run.model, images[:2]))
bench.matmul_limit("fp32", torch.device("cpu"), 0.01)
modelfile.read(run.model)
sys.stdout.write(json.dumps(changes(before)))
"""


def differences(program: str, tmp_path: Path, *arguments: Path) -> dict[str, str]:
    """Run the program in an empty folder with an empty home, and return the changes it found."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    source = str(Path(resnetkit.__file__).parents[1])
    own = {"HOME": str(tmp_path / "home"), "TORCH_HOME": str(tmp_path / "torch")}
    own |= {"MPLCONFIGDIR": str(tmp_path / "matplotlib"), "PYTHONPATH": source}
    own |= {"GOMP_SPINCOUNT": "10000"}  # keeps threads fast while other tests run
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, *map(str, arguments)],
        cwd=tmp_path / "here",
        env={**os.environ, **own},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_importing_every_module_changes_nothing(tmp_path):
    found = differences(IMPORTS, tmp_path)
    assert not found, json.dumps(found, indent=1)


def test_training_evaluating_and_predicting_change_nothing(tmp_path, save):
    data = save(tmp_path / "data", 8)
    found = differences(CALLS, tmp_path, data, tmp_path)
    assert not found, json.dumps(found, indent=1)

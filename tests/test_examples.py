"""docs/examples: the scripts for clusters."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resnetkit.scale.ray_data import resolve_address

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
JOB = EXAMPLES / "train.yaml"

SRUN = """#!/bin/bash
# Runs a command as srun does, on a cluster of two hosts; prints what would be started.
[[ $1 == --kill-on-bad-exit=1 ]] && shift
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done
"""


def test_the_slurm_script_passes_shellcheck():
    linter = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("shellcheck is not installed: NOT LINTED (pip install -e .[dev])")
    script = str(EXAMPLES / "train.sbatch")
    done = subprocess.run([linter, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script_starts_one_torchrun_per_host(tmp_path):
    for name, text in {
        "srun": SRUN,
        "scontrol": "#!/bin/sh\nprintf 'node7\\nnode8\\n'\n",
        "torchrun": '#!/bin/sh\necho "threads $OMP_NUM_THREADS:" "$@"\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "123456"}
    slurm |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(EXAMPLES / "train.sbatch"), "my photos", "run", "--batch-size", "64"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"threads 8: --node-rank {node} --nnodes 2 --nproc-per-node 4 --master-addr node7 "
        "--master-port 23456 -m resnetkit train my photos --out run --resume --batch-size 64"
        for node in (0, 1)
    ]


def test_the_kubernetes_job_fits_together():
    service, job = yaml.safe_load_all(JOB.read_text(encoding="utf-8"))
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    command = container["command"]
    assert (service["kind"], job["kind"], spec["completionMode"]) == ("Service", "Job", "Indexed")
    assert spec["completions"] == spec["parallelism"] == 2
    assert f"--nnodes={spec['completions']}" in command
    # The pods of an indexed Job are named after it and their index; the Service is their domain.
    name = service["metadata"]["name"]
    assert pod["subdomain"] == name
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"--master-addr={job['metadata']['name']}-0.{name}" in command
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert command[command.index("train") + 1].startswith(container["volumeMounts"][0]["mountPath"])


def test_the_kubernetes_job_fits_the_published_schema():
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for document in yaml.safe_load_all(JOB.read_text(encoding="utf-8")):
        validate.validate(document, "1.29", strict=True)


def test_the_ray_job_fits_together_and_its_pods_fit_the_published_schema():
    """KubeRay's own schema is not on PyPI; the pods in it are validated like any other."""
    job = yaml.safe_load((EXAMPLES / "predict.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:2] == ["resnet", "predict"]
    assert resolve_address(command[command.index("--on") + 1])
    for group in (head, workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] == pod["volumes"][0]["name"]
        for path in (command[2], command[3], command[command.index("--out") + 1]):
            assert path.startswith(mount["mountPath"])
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for group in (head, workers):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **group["template"]}
        validate.validate(pod, "1.29", strict=True)

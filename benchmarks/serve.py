"""Measure requests per second and their latency: resnet serve, predict and other servers.

    python benchmarks/serve.py MODEL.onnx --seconds 10 --rounds 3
    python benchmarks/serve.py MODEL.onnx --peers VENV/bin/python

MODEL is an exported file, so that all methods compute with ONNX Runtime on the same threads. The
photos are 500x375 (noise and shapes, JPEG, quality 90). In each round, the methods take turns:

- predict: `ExportedPredictor.stream` on the photos, as many images per second as it can
- call: the predictor called with one photo after another
- serve: the command ``resnet serve``
- fastapi: one handler that decodes, computes and answers, on uvicorn
- litserve, mosec: these servers, with batches of up to 8 that wait at most 5 ms

The last three run with ``--peers``, in an environment with fastapi, uvicorn, litserve, mosec,
onnxruntime and pillow.

One client and 16 clients send the next request when they have the answer. Then servers get requests
in an open loop: request k starts at the time k / rate after the first, whether or not earlier ones
have been answered, so a slow server does not slow down its own load. The rates are shares of what
predict reached in the same round. Latency is measured from that planned time. Only answers within
the deadline of 2 seconds count. At most `MOST` requests are open at once; any beyond that count as
failed. Everything runs on the loopback address; the client shares the cores with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from resnetkit.export.predictor import ExportedPredictor
from resnetkit.limits import cores

SIZE, MOST, DEADLINE = (500, 375), 300, 2.0
RATES = (0.5, 0.8, 2.0, 10.0)
COMMON = """
import io, os, sys
import numpy as np
import onnxruntime
from PIL import Image

FILE = os.environ["FILE"]
PORT = int(os.environ["PORT"])
THREADS = int(os.environ["THREADS"])

def start():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(FILE, options)

def decode(body):
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))

def answers(session, images):
    shares = session.run(["probabilities"], {"image": np.stack(images)})[0]
    return [{"class": int(row.argmax()), "probability": float(row.max())} for row in shares]
"""
PEERS = {
    "fastapi": """
import uvicorn
from fastapi import FastAPI, Request

session, app = start(), FastAPI()

@app.get("/ready")
def ready():
    return True

@app.post("/predict")
async def predict(request: Request):
    return answers(session, [decode(await request.body())])[0]

uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
""",
    "litserve": """
import litserve

class Api(litserve.LitAPI):
    def setup(self, device):
        self.session = start()

    def decode_request(self, request):
        return decode(request["photo"].file.read())

    def batch(self, inputs):
        return inputs

    def predict(self, images):
        return answers(self.session, images)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output

if __name__ == "__main__":
    api = Api(max_batch_size=8, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", healthcheck_path="/ready")
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
""",
    "mosec": """
from mosec import Server, Worker

class Decode(Worker):
    def deserialize(self, data):
        return data

    def forward(self, data):
        return decode(data)

class Compute(Worker):
    def __init__(self):
        super().__init__()
        self.session = start()

    def forward(self, images):
        return answers(self.session, images)

if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", str(PORT), "--timeout", "30000"]
    server = Server()
    server.append_worker(Decode, num=2, route="/predict")
    server.append_worker(Compute, num=1, max_batch_size=8, max_wait_time=5, route="/predict")
    server.run()
""",
}


def photos(count: int) -> list[bytes]:
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        image = coarse.resize(SIZE, Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, side = (int(v) for v in rng.integers((0, 0, 20), (480, 350, 160)))
            draw.rectangle((x, y, x + side, y + side), tuple(map(int, rng.integers(0, 256, 3))))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def predict_speed(model: Path, images: list[bytes], seconds: float) -> tuple[float, float]:
    """Return the images per second of `stream`, and the median seconds of a call with one image."""
    predictor = ExportedPredictor(model)
    list(predictor.stream(images[:8]))
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += len(list(predictor.stream(images)))
    speed = done / (time.perf_counter() - start)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        list(predictor.stream([images[len(times) % len(images)]]))
        times.append(time.perf_counter() - start)
    return speed, statistics.median(times)


def multipart(image: bytes) -> bytes:
    """Return the headers and the body of a form, which LitServe needs."""
    part = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="photo.jpg"\r\n'
    body = part + b"Content-Type: image/jpeg\r\n\r\n" + image + b"\r\n--x--\r\n"
    return b"Content-Type: multipart/form-data; boundary=x\r\n" + raw(body)


def raw(image: bytes) -> bytes:
    return f"Content-Length: {len(image)}\r\n\r\n".encode() + image


async def ask(port: int, rest: bytes) -> int:
    """Send one request on its own connection; return the status of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        deadline = f"X-Deadline-Ms: {round(1000 * DEADLINE)}\r\nConnection: close\r\n"
        writer.write((head + deadline).encode() + rest)
        answer = await reader.read()
        return int(answer.split(b" ", 2)[1])
    finally:
        writer.close()


async def clients(
    port: int, requests: list[bytes], count: int, seconds: float
) -> dict[str, object]:
    """Let clients send requests, each as soon as its last is answered; return the rate and
    latencies."""
    latencies: list[float] = []
    begin = time.perf_counter()
    end = begin + seconds

    async def one(number: int) -> None:
        while (start := time.perf_counter()) < end:
            status = await ask(port, requests[(number + len(latencies)) % len(requests)])
            assert status == 200, status
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(one(number) for number in range(count)))
    took = time.perf_counter() - begin
    return {"good per second": round(len(latencies) / took, 1), **quantiles(latencies)}


async def load(port: int, requests: list[bytes], rate: float, seconds: float) -> dict[str, object]:
    """Send requests in an open loop; return counts and latencies."""
    latencies: list[float] = []
    refusals: list[float] = []
    outcomes: Counter[str] = Counter()
    open_requests = 0
    start = time.perf_counter()

    async def one(number: int) -> None:
        nonlocal open_requests
        planned = start + number / rate
        await asyncio.sleep(max(0.0, planned - time.perf_counter()))
        if open_requests >= MOST:
            outcomes["too many open"] += 1
            return
        sent = time.perf_counter()
        open_requests += 1
        try:
            status = str(await asyncio.wait_for(ask(port, requests[number % len(requests)]), 30))
        except (OSError, IndexError, ValueError, TimeoutError) as error:
            status = type(error).__name__
        finally:
            open_requests -= 1
        latency = time.perf_counter() - planned
        late = status == "200" and latency > DEADLINE
        outcomes["late" if late else status] += 1
        if status == "200" and not late:
            latencies.append(latency)
        if status == "503":
            refusals.append(time.perf_counter() - sent)

    await asyncio.gather(*(one(number) for number in range(round(rate * seconds))))
    took = max(seconds, time.perf_counter() - start)
    found: dict[str, object] = {"good per second": round(len(latencies) / took, 1)}
    found |= quantiles(latencies)
    if refusals:
        found["refused after, p99 ms"] = quantiles(refusals)["p99 ms"]
    return {**found, "outcomes": dict(outcomes)}


def quantiles(latencies: list[float]) -> dict[str, object]:
    found = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [0.0] * 99
    return {"p50 ms": round(1000 * found[49], 1), "p99 ms": round(1000 * found[98], 1)}


def memory(process: int) -> float:
    """Return the resident megabytes of a process and its children (Linux)."""
    folder = Path(f"/proc/{process}")
    kilobytes = 0
    for line in (folder / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            kilobytes = int(line.split()[1])
    children = (folder / "task" / str(process) / "children").read_text().split()
    return kilobytes / 1000 + sum(memory(int(child)) for child in children)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(
                b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            return b" 200 " in connection.recv(99)
    except OSError:
        return False


def start(
    way: str, model: Path, port: int, peers: Path | None = None, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a server and wait until it is ready."""
    if way == "serve":
        command = [sys.executable, "-m", "resnetkit", "serve", str(model), "--port", str(port)]
    else:
        assert folder is not None
        script = folder / f"with_{way}.py"
        script.write_text(COMMON + PEERS[way])
        command = [str(peers), str(script)]
    settings = {"FILE": str(model), "PORT": str(port), "THREADS": str(cores())}
    server = subprocess.Popen(
        command,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for _ in range(2400):
        time.sleep(0.025)
        if server.poll() is not None:
            raise SystemExit(f"{way} ended with exit code {server.returncode}")
        # mosec has no path that reports it
        if is_ready(port) if way != "mosec" else answers_photo(port):
            return server
    raise SystemExit(f"{way} did not start")


def answers_photo(port: int) -> bool:
    try:
        return asyncio.run(ask(port, raw(photos(1)[0]))) == 200
    except (OSError, IndexError, ValueError):
        return False


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop a server and any processes it started, because some servers leave theirs running."""
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    arguments = parser.parse_args()
    versions = {
        name: metadata.version(name)
        for name in ("resnetkit", "onnxruntime", "uvicorn", "starlette")
    }
    machine = {"cores": cores(), "processor": platform.processor() or platform.machine()}
    print(json.dumps({**machine, "load average": os.getloadavg(), "versions": versions}))
    images = photos(64)
    ways = ["serve", *(PEERS if arguments.peers else ())]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            speed, latency = predict_speed(arguments.model, images, arguments.seconds)
            found = {"images per second": round(speed, 1), "call, p50 ms": round(1000 * latency, 1)}
            print(json.dumps({"round": number, "way": "predict", **found}), flush=True)
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                port = free_port()
                requests = [multipart(i) if way == "litserve" else raw(i) for i in images]
                server = start(way, arguments.model, port, arguments.peers, Path(folder))
                try:
                    for count in (1, 16):
                        result = asyncio.run(clients(port, requests, count, arguments.seconds))
                        line = {"round": number, "way": way, "clients": count, **result}
                        print(json.dumps(line), flush=True)
                    for share in RATES:
                        result = asyncio.run(load(port, requests, share * speed, arguments.seconds))
                        result["MB"] = round(memory(server.pid))
                        line = {"round": number, "way": way, "share of predict": share, **result}
                        print(json.dumps(line), flush=True)
                finally:
                    stop(server)


if __name__ == "__main__":
    main()

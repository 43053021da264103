"""Test resnet serve under bad conditions: signals, crashes, slow and hostile clients.

    python benchmarks/serve_limits.py start MODEL...            seconds from the command to ready
    python benchmarks/serve_limits.py stop MODEL --times 100    SIGTERM under load
    python benchmarks/serve_limits.py crash MODEL --times 20    the engine ends under load
    python benchmarks/serve_limits.py dribble MODEL             500 slow connections
    python benchmarks/serve_limits.py uploads MODEL --count 10000   mutated images and requests
    python benchmarks/serve_limits.py sizes MODEL --count 200000    images of 5,000 sizes; memory

Everything except the timing of the signals is seeded, and runs on the loopback address. A request
is lost if the server received all of it and closed the connection without an answer. Clients that
cannot connect, because the server no longer listens, are counted separately.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from serve import ask, free_port, is_ready, memory, photos, quantiles, raw
from serve import start as start_ready

from resnetkit.serving.served import open_served
from resnetkit.serving.server import Server

CLIENTS = 16


def show(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    code = server.wait(60)
    assert code == 0, code


def measure_start(models: list[Path], times: int) -> None:
    for model in models:
        seconds = []
        for _ in range(times):
            port, begin = free_port(), time.perf_counter()
            server = start_ready("serve", model, port)
            seconds.append(round(time.perf_counter() - begin, 2))
            end(server)
        show(test="start", model=model.name, seconds=seconds, median=statistics.median(seconds))


async def ask_until(port: int, requests: list[bytes], finished: threading.Event) -> Counter[str]:
    """Let clients send requests until told to stop; return how their requests ended."""
    outcomes: Counter[str] = Counter()

    async def one(number: int) -> None:
        while not finished.is_set():
            try:
                outcome = str(await asyncio.wait_for(ask(port, requests[number]), 40))
            except ConnectionRefusedError:
                outcome = "not connected"
                await asyncio.sleep(0.01)
            except (OSError, IndexError, ValueError) as error:  # no status arrived
                outcome = f"lost ({type(error).__name__})"
            except TimeoutError:
                outcome = "hangs"
            outcomes[outcome] += 1

    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return outcomes


def measure_stop(model: Path, times: int) -> None:
    requests = [raw(image) for image in photos(CLIENTS)]
    total: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    seconds = []
    for number in range(times):
        port = free_port()
        server = start_ready("serve", model, port)
        finished = threading.Event()

        def end_it(
            server: subprocess.Popen[bytes] = server, done: threading.Event = finished
        ) -> None:
            time.sleep(random.uniform(0.2, 1.5))
            begin = time.perf_counter()
            server.send_signal(signal.SIGTERM)
            codes[server.wait(60)] += 1
            seconds.append(time.perf_counter() - begin)
            done.set()

        thread = threading.Thread(target=end_it)
        thread.start()
        total += asyncio.run(ask_until(port, requests, finished))
        thread.join()
        if number % 10 == 9 or number == times - 1:
            show(
                test="stop",
                signals=number + 1,
                exit_codes=codes,
                outcomes=total,
                longest_seconds=round(max(seconds), 2),
            )


def measure_crash(model: Path, times: int) -> None:
    """Crash the engine under load. The server runs in this process: its engine is a thread."""
    server = Server(open_served(model), port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.engine.ready:
        time.sleep(0.01)
    assert server.address is not None
    finished = threading.Event()
    unready, back = [], []

    def end_engine() -> None:
        for _ in range(times):
            time.sleep(random.uniform(0.5, 1.5))
            worker = server.engine._worker
            assert worker is not None
            begin = time.perf_counter()
            ident = ctypes.c_ulong(worker.thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
            while server.engine.ready and server.engine._worker is worker:
                time.sleep(0.002)
            unready.append(time.perf_counter() - begin)
            while not server.engine.ready:
                time.sleep(0.002)
            back.append(time.perf_counter() - begin)
        finished.set()

    killer = threading.Thread(target=end_engine)
    killer.start()
    requests = [raw(image) for image in photos(CLIENTS)]
    outcomes = asyncio.run(ask_until(server.address[1], requests, finished))
    killer.join()
    server.stop()
    thread.join(30)
    show(
        test="crash",
        times=times,
        outcomes=outcomes,
        not_ready_after=round(max(unready), 3),
        ready_after=[round(statistics.median(back), 2), round(max(back), 2)],
    )


async def honest(port: int, requests: list[bytes], count: int) -> dict[str, object]:
    """Send requests one after another."""
    latencies = []
    for number in range(count):
        begin = time.perf_counter()
        assert await ask(port, requests[number % len(requests)]) == 200
        latencies.append(time.perf_counter() - begin)
    return quantiles(latencies)


async def dribble(port: int, stop: asyncio.Event, counts: Counter[str]) -> None:
    """Send one byte of a request per second, on a new connection whenever one is closed."""
    while not stop.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as error:
            counts[type(error).__name__] += 1
            await asyncio.sleep(1)
            continue
        try:
            for byte in b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999\r\n":
                if stop.is_set() or reader.at_eof():
                    break
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
            counts["closed" if reader.at_eof() else "open"] += 1
        except OSError as error:
            counts[type(error).__name__] += 1
        finally:
            writer.close()


async def measure_dribble(port: int, connections: int) -> None:
    requests = [raw(image) for image in photos(CLIENTS)]
    await honest(port, requests, 20)
    for _ in range(3):
        alone = await honest(port, requests, 200)
        stop = asyncio.Event()
        counts: Counter[str] = Counter()
        tasks = [asyncio.create_task(dribble(port, stop, counts)) for _ in range(connections)]
        await asyncio.sleep(3)
        among = await honest(port, requests, 200)
        stop.set()
        await asyncio.gather(*tasks)
        show(test="dribble", connections=connections, alone=alone, among_them=among, ended=counts)
        await asyncio.sleep(1)


def mutated(rng: random.Random, images: list[bytes]) -> tuple[bytes, bool]:
    """Return the bytes of a connection, and whether to close its sending half at once."""
    body = bytearray(rng.choice(images) or b"x")
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(body))
        kind = rng.randrange(3)
        if kind == 0:
            body[at] = rng.randrange(256)
        elif kind == 1:
            del body[at : at + rng.choice([1, 10, 1000])]
        else:
            body[at:at] = rng.randbytes(rng.choice([1, 10, 1000]))
        body = body or bytearray(b"x")
    kind = rng.randrange(10)
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    content = head.encode() + body
    if kind == 0:  # a body that ends early
        return content[: rng.randrange(len(head), len(content) + 1)], True
    if kind == 1:  # damaged headers
        line = bytearray(head.encode())
        for _ in range(rng.randrange(1, 5)):
            line[rng.randrange(len(line))] = rng.randrange(256)
        return bytes(line) + body, True
    if kind == 2:  # garbage
        return rng.randbytes(rng.randrange(1, 4000)), True
    if kind == 3:  # garbage after a request, on the same connection
        return content + rng.randbytes(rng.randrange(1, 2000)), False
    if kind == 4:  # pipelined requests
        return content * 3, False
    return content, False


def bombs() -> list[bytes]:
    """Return small files that claim many pixels, or hold none."""
    found = []
    for size in ((30_000, 30_000), (7_000, 7_200)):
        buffer = io.BytesIO()
        Image.new("1", size).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return [*found, b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20), b"BM" + bytes(60)]


def talk(port: int, content: bytes, closes: bool) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(content)
            if closes:
                connection.shutdown(socket.SHUT_WR)
            else:
                connection.settimeout(60)
            found = b""
            while part := connection.recv(65536):
                found += part
                if not closes and b"\r\n\r\n" in found:
                    break
            return found
        except OSError:  # it answered and closed while we were sending
            return b"closed"


def measure_uploads(model: Path, count: int) -> None:
    rng = random.Random(0)
    images = [*photos(8), *bombs()]
    for extension in ("png", "webp", "gif", "tiff", "bmp"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(images[0])).resize((99, 70)).save(buffer, extension)
        images.append(buffer.getvalue())
    port = free_port()
    server = start_ready("serve", model, port)
    statuses: Counter[str] = Counter()
    before = memory(server.pid)
    peak = before
    for number in range(count):
        answer = talk(port, *mutated(rng, images))
        status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else repr(answer)
        statuses[status] += 1
        if status == "500":
            show(number=number, answer=answer.decode("latin-1")[-300:])
        if number % 100 == 0:
            peak = max(peak, memory(server.pid))
    assert is_ready(port)
    assert asyncio.run(ask(port, raw(images[0]))) == 200
    after = memory(server.pid)
    end(server)
    show(
        test="uploads",
        count=count,
        statuses=statuses,
        megabytes={"before": round(before), "peak": round(peak), "after": round(after)},
    )


def measure_sizes(model: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    bodies = []
    for _ in range(5000):
        width, height = (int(v) for v in rng.integers(16, 400, 2))
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        image.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        bodies.append(raw(buffer.getvalue()))
    port = free_port()
    server = start_ready("serve", model, port)
    outcomes: Counter[int] = Counter()
    numbers = iter(range(count))
    megabytes = []

    async def client() -> None:
        for number in numbers:
            outcomes[await ask(port, bodies[number % len(bodies)])] += 1
            if number % (count // 20) == count // 20 - 1:
                megabytes.append(round(memory(server.pid), 1))

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    begin = time.perf_counter()
    asyncio.run(clients())
    seconds = round(time.perf_counter() - begin)
    end(server)
    show(test="sizes", count=count, seconds=seconds, outcomes=outcomes, megabytes=megabytes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tests = ("start", "stop", "crash", "dribble", "uploads", "sizes")
    parser.add_argument("test", choices=tests)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--count", type=int, default=10_000)
    arguments = parser.parse_args()
    show(cores=os.cpu_count(), load_average=os.getloadavg(), python=sys.version.split()[0])
    model = arguments.models[0]
    if arguments.test == "start":
        measure_start(arguments.models, arguments.times)
    elif arguments.test == "stop":
        measure_stop(model, arguments.times)
    elif arguments.test == "crash":
        measure_crash(model, arguments.times)
    elif arguments.test == "dribble":
        port = free_port()
        server = start_ready("serve", model, port)
        asyncio.run(measure_dribble(port, connections=500))
        end(server)
    elif arguments.test == "uploads":
        measure_uploads(model, arguments.count)
    else:
        measure_sizes(model, arguments.count)


if __name__ == "__main__":
    main()

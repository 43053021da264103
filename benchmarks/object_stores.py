"""Read small ranges from an object store: obstore against s3fs, and the gain from reading ahead.

    pip install obstore s3fs
    python benchmarks/object_stores.py libraries
    python benchmarks/object_stores.py dataset

The store is a small S3 server in another process on this machine. It answers after 20 ms, about
what a store in the same region takes.

- libraries: each library reads 50 KB ranges of one object with 8, 16 and 32 requests in flight, in
  its own process; also from a server without the delay
- dataset: 2,000 images of 50 KB in shards, read in order by `resnetkit`: by two threads, as from a
  disk, with reading ahead, and from the cache on disk. Every image is checked by its SHA-256

It prints one line of JSON per measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

SIZE = 50_000
OBJECT = 64 * 2**20
READS = 2000
DELAY = 0.02  # seconds


async def serve(port_to: Connection, objects: dict[str, bytes], delay: float) -> None:
    listed = "".join(
        f"<Contents><Key>{key}</Key><Size>{len(body)}</Size><ETag>1</ETag>"
        "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        for key, body in objects.items()
    )
    listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                await asyncio.sleep(delay)
                method, path, _ = head.split(" ", 2)
                is_list = "?" in path
                body = listing.encode() if is_list else objects[path.removeprefix("/bucket/")]
                lines = ["200 OK", "etag: 1", "last-modified: Thu, 01 Jan 2026 00:00:00 GMT"]
                _, has_range, span = head.lower().partition("\r\nrange: bytes=")
                total = len(body)
                if has_range:
                    first, last = map(int, span.split("\r\n")[0].split("-"))
                    body = body[first : last + 1]
                    lines[0] = "206 Partial Content"
                    lines.append(f"content-range: bytes {first}-{last}/{total}")
                lines += [f"content-length: {len(body)}", "", ""]
                writer.write("\r\n".join(["HTTP/1.1 " + lines[0], *lines[1:]]).encode())
                if method != "HEAD":
                    writer.write(body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port_to.send(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


def start(port_to: Connection, objects: dict[str, bytes], delay: float) -> None:
    asyncio.run(serve(port_to, objects or {"object": os.urandom(OBJECT)}, delay))


@contextlib.contextmanager
def running(objects: dict[str, bytes], delay: float) -> Iterator[None]:
    """Run the server, and set the environment variables that name it. Without objects, make one."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=start, args=(sender, objects, delay), daemon=True)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{receiver.recv()}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
    }
    try:
        yield
    finally:
        server.terminate()
        server.join()


def report(what: dict[str, object], begin: tuple[float, float]) -> None:
    seconds = time.perf_counter() - begin[0]
    cpu = time.process_time() - begin[1]
    values = {"reads/s": round(READS / seconds), "CPU ms per read": round(cpu / READS * 1000, 2)}
    print(json.dumps(what | values), flush=True)


def measure_library(library: str, flight: int) -> None:
    """Read, and print one line. This runs in its own process."""
    begin = time.perf_counter()
    if library == "obstore":
        from obstore.store import S3Store

        imported = time.perf_counter() - begin
        store = S3Store("bucket", client_options={"allow_http": True})

        def read(start: int) -> int:
            return len(store.get_range("object", start=start, length=SIZE))
    else:
        import s3fs

        imported = time.perf_counter() - begin
        options = {"max_pool_connections": flight}
        files = s3fs.S3FileSystem(
            endpoint_url=os.environ["AWS_ENDPOINT_URL"], config_kwargs=options
        )

        def read(start: int) -> int:
            return len(files.cat_file("bucket/object", start=start, end=start + SIZE))

    starts = [(i * 7_919_000) % (OBJECT - SIZE) for i in range(READS)]
    with ThreadPoolExecutor(flight) as pool:
        list(pool.map(read, starts[:64]))  # opens the connections
        times = (time.perf_counter(), time.process_time())
        assert sum(pool.map(read, starts)) == READS * SIZE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    what = {"library": library, "in flight": flight, "import s": round(imported, 2)}
    report({**what, "peak MB": peak}, times)


def measure_libraries() -> None:
    for delay in (DELAY, 0.0):
        with running({}, delay):
            print(f"delay {delay * 1000:.0f} ms", flush=True)
            for flight in (8, 16, 32):
                for library in ("obstore", "s3fs"):
                    command = [sys.executable, __file__, "library", library, str(flight)]
                    subprocess.run(command, check=True, timeout=300)


def measure_dataset() -> None:
    import numpy as np
    from PIL import Image

    from resnetkit.data import files
    from resnetkit.data.folder import read_dataset
    from resnetkit.data.remote import in_order
    from resnetkit.data.shard_writer import write_shards
    from resnetkit.prefetch import prefetch_map

    with tempfile.TemporaryDirectory() as temporary:
        photos = Path(temporary) / "photos"
        rng = np.random.default_rng(0)
        for number in range(READS):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (130, 128, 3), np.uint8)).save(buffer, "BMP")
            path = photos / "ab"[number % 2] / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
        write_shards(photos, Path(temporary) / "packed")
        objects = {
            f"packed/{path.name}": path.read_bytes()
            for path in (Path(temporary) / "packed").iterdir()
        }
        os.environ["RESNETKIT_CACHE"] = str(Path(temporary) / "cache")
        with running(objects, DELAY):
            split = read_dataset("s3://bucket/packed").splits["all"]
            ways = [("two threads", "0"), ("read ahead", "0"), ("read ahead", "10")]
            for way, cache in [*ways, ("from the cache", "10")]:
                os.environ["RESNETKIT_OBJECT_CACHE_GB"] = cache
                order = in_order(split) if way != "two threads" else iter(range(len(split)))
                times = (time.perf_counter(), time.process_time())
                read = prefetch_map(lambda i: len(files.read_file(split.path(i))), order, 2)
                total = sum(read)
                report({"way": way, "cache": cache != "0", "MB": total // 10**6}, times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["libraries", "dataset", "library"])
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "library":
        library, flight = arguments.arguments
        measure_library(library, int(flight))
    elif arguments.what == "libraries":
        measure_libraries()
    else:
        measure_dataset()


if __name__ == "__main__":
    main()

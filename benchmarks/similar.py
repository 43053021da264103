"""Measure the search of `resnet similar`: its time, memory, and how good the neighbors are.

    python benchmarks/similar.py random [--photos N] [--queries N] [--width N]
    python benchmarks/similar.py approximate [--photos N] [--queries N] [--width N]
    python benchmarks/similar.py share MODEL FOLDER

The first searches random vectors and compares a few results with a plain sort in float64. The
second compares the search with an index of usearch (pip install usearch) on vectors in 20 groups.
The third takes every photo of FOLDER/<class>/ as a query among all others, and prints how often the
nearest one has the same class.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from resnetkit.evaluation.neighbors import nearest_neighbors


def random(photos: int, queries: int, width: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((photos, width), np.float32)
    wanted = rng.standard_normal((queries, width), np.float32)
    nearest_neighbors(features[:100], wanted, 5)  # starts the threads
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    indices, _ = nearest_neighbors(features, wanted, 5)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for row in range(min(3, queries)):
        wide = features.astype(np.float64)
        cosines = wide @ wanted[row] / np.linalg.norm(wide, axis=1)
        assert np.argsort(-cosines, kind="stable")[:5].tolist() == indices[row].tolist()
    print(
        f"{photos:,} photos, {queries:,} queries, {width} numbers each: {wall:.2f} s, {cpu:.2f} s "
        f"of CPU time; features {features.nbytes / 1e6:.0f} MB, peak {peak / 1e3:.0f} MB, "
        f"{(peak - before) / 1e3:.0f} MB more than before the search"
    )


def approximate(photos: int, queries: int, width: int) -> None:
    from usearch.index import Index

    rng = np.random.default_rng(0)
    centers = np.abs(rng.normal(size=(20, width)))
    features = centers[rng.integers(0, 20, photos)] + 0.5 * rng.normal(size=(photos, width))
    features = features.astype(np.float32).clip(0)
    wanted = features[rng.integers(0, photos, queries)]
    wanted = wanted + 0.1 * rng.standard_normal((queries, width), np.float32)
    times = [time.process_time()]
    index = Index(ndim=width, metric="cos", dtype="f32")
    index.add(np.arange(photos), features, threads=1)
    times.append(time.process_time())
    found = index.search(wanted, 5, threads=1).keys
    times.append(time.process_time())
    exact, _ = nearest_neighbors(features, wanted, 5)
    times.append(time.process_time())
    built, searched, exactly = np.diff(times)
    recall = np.mean([len({*a} & {*b}) / 5 for a, b in zip(exact, found, strict=True)])
    print(
        f"{photos:,} photos, {queries:,} queries, CPU time: usearch builds its index in "
        f"{built:.1f} s, searches in {searched:.2f} s and finds {recall:.1%} of the nearest five; "
        f"the exact search takes {exactly:.2f} s"
    )


def share(model: Path, folder: Path) -> None:
    import resnetkit

    predictor = resnetkit.load(model, precision="fp32")
    photos = [str(path) for path in sorted(folder.glob("*/*")) if path.is_file()]
    index = resnetkit.ImageIndex.from_images(predictor, photos)
    labels = np.array(index.labels)
    indices, _ = index.search(index.features, 5, exclude=np.arange(len(index)))
    same = labels[indices] == labels[:, None]
    sizes = np.array([(labels == label).sum() for label in labels])
    chance = ((sizes - 1) / (len(labels) - 1)).mean()
    print(
        f"{len(index):,} photos of {len(set(labels))} classes: the nearest photo has the query's "
        f"class for {same[:, 0].sum():,} ({same[:, 0].mean():.1%}); of the nearest five, "
        f"{same.mean():.1%}; a random photo, {chance:.1%}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, photos, queries in (("random", 100_000, 100), ("approximate", 50_000, 1000)):
        one = commands.add_parser(name)
        one.add_argument("--photos", type=int, default=photos)
        one.add_argument("--queries", type=int, default=queries)
        one.add_argument("--width", type=int, default=256)
    other = commands.add_parser("share")
    other.add_argument("model", type=Path)
    other.add_argument("folder", type=Path)
    arguments = vars(parser.parse_args())
    measure = {"random": random, "approximate": approximate, "share": share}
    measure[arguments.pop("what")](**arguments)

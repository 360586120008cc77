"""joblib on cmwq: no n_jobs, tasks that wait cost nothing, and Parallel within Parallel.

python examples/joblib_backend.py
"""

from __future__ import annotations

import time
import zlib

import joblib  # type: ignore[import-untyped,import-not-found,unused-ignore]

import cmwq.contrib.joblib


def nested(depth: int) -> int:
    if depth == 0:
        return 1
    return sum(joblib.Parallel(n_jobs=-1)(joblib.delayed(nested)(depth - 1) for _ in range(4)))


def main() -> None:
    cmwq.contrib.joblib.register()
    for backend in ("threading", "cmwq"):
        with joblib.parallel_config(backend=backend, n_jobs=-1):
            begun = time.monotonic()
            joblib.Parallel()(joblib.delayed(time.sleep)(0.05) for _ in range(40))
            naps = time.monotonic() - begun
            sizes = joblib.Parallel()(joblib.delayed(zlib.compress)(bytes(100_000)) for _ in range(40))
            print(f"{backend}: 40 naps of 0.05 s in {naps:.2f} s, {len(sizes)} texts compressed")
    with joblib.parallel_config(backend="cmwq"):
        print("cmwq: 4 levels of Parallel, nested:", nested(4), "leaves")


if __name__ == "__main__":
    main()

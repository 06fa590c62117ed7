"""Programs to compare with, unpacked from the system's packages; none is installed."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

#: What benchmarks keep from one run to the next.
CACHE = Path.home() / ".cache" / "p2pmesh-benchmarks"


def program(package: str, name: str) -> str:
    """Where it is on this system, or else where ``unpack`` puts it."""
    unpacked = CACHE / package
    found = shutil.which(name) or next(unpacked.glob(f"usr/*bin/{name}"), None)
    return str(found or unpacked / "usr/bin" / name)


def unpack(package: str) -> None:
    """Into ``CACHE``, if there is such a package; ``program`` tells whether that helped."""
    (CACHE / package).mkdir(parents=True, exist_ok=True)
    with suppress(OSError, subprocess.CalledProcessError, StopIteration):
        download = ["apt-get", "download", "-q", package]
        subprocess.run(download, cwd=CACHE, check=True, capture_output=True)
        file = next(CACHE.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", str(file), str(CACHE / package)], check=True)

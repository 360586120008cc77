"""How the C extension is built, and how archives of the source become reproducible. All else is in pyproject.toml.

CMWQ_EXTENSION in the environment says what becomes of the extension:

    optional    built for this Python alone. If that fails, or this is not Linux, there is none: the sensors in Python
                serve then, and `cmwq doctor` says so. This is what holds if nothing is said.
    required    the same, but a failure is an error.
    abi3        required, and of the limited API: one wheel for every Python from 3.11 on, but for free-threaded ones.
    none        not built: a wheel of Python alone, for every system.

Guarantee: with SOURCE_DATE_EPOCH set, the same source, Python, setuptools and compiler give the same archives, byte by
byte. For wheels setuptools does that, once no paths and times are compiled in; for archives of the source `Sdist` does.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import sysconfig
import tarfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

FOLDER = Path("src/cmwq/_sensor/_native")
OLDEST = "cp311", "0x030B0000"
"""The oldest Python that an abi3 wheel is for."""
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Wno-cast-function-type"]


class Sdist(sdist):
    """An archive of the source that depends on the source alone."""

    def make_archive(self, base_name: str, format: str, *args: object, **options: object) -> str:
        path: str = super().make_archive(base_name, format, *args, **options)
        if format == "gztar" and "SOURCE_DATE_EPOCH" in os.environ:
            normalise(Path(path), int(os.environ["SOURCE_DATE_EPOCH"]))
        return path


def normalise(archive: Path, epoch: int) -> None:
    """Write it anew: its members in the order of their names, all of one time and of no owner."""
    with tarfile.open(archive) as old:
        members = sorted(old.getmembers(), key=lambda member: member.name)
        contents = [old.extractfile(member).read() if member.isfile() else b"" for member in members]
    with (
        open(archive, "wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member, content in zip(members, contents, strict=True):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, io.BytesIO(content))


def extension(wanted: str) -> Extension | None:
    """What to build. None: nothing. Raises SystemExit where it can't be had, and for a word that means nothing."""
    if wanted not in ("optional", "required", "abi3", "none"):
        raise SystemExit(f"CMWQ_EXTENSION: {wanted!r} is none of optional, required, abi3, none")
    linux, abi3 = sys.platform.startswith("linux"), wanted == "abi3"
    if wanted == "none" or (wanted == "optional" and not linux):
        return None
    if not linux:
        raise SystemExit(f"CMWQ_EXTENSION={wanted}: the extension needs Linux, this is {sys.platform}")
    if abi3 and sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise SystemExit("CMWQ_EXTENSION=abi3: a free-threaded Python has no limited API that this could be built for")
    return Extension(
        "cmwq._sensor._sentinel",
        [str(FOLDER / "module.c")],
        depends=sorted(map(str, FOLDER.glob("*.h"))),  # editing one builds it anew
        optional=wanted == "optional",
        py_limited_api=abi3,
        define_macros=[("Py_LIMITED_API", OLDEST[1])] if abi3 else [],
        # What debuggers read names the folder of the build, so that two builds would differ.
        extra_compile_args=FLAGS if wanted == "optional" else [*FLAGS, "-g0"],
    )


def main() -> None:
    wanted = os.environ.get("CMWQ_EXTENSION") or "optional"
    built = extension(wanted)
    setup(
        ext_modules=[] if built is None else [built],
        cmdclass={"sdist": Sdist},
        options={"bdist_wheel": {"py_limited_api": OLDEST[0]}} if wanted == "abi3" else {},
    )


if __name__ == "__main__":
    main()

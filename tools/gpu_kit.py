"""`make gpu-kit`: the project, and the packages that it needs beside PyTorch and Typer, for a machine with a GPU and no network.

The folder holds the files as they stand here, the name of their commit, and the packages in one file. There, `python3 -m tools.gpu`
does the rest (docs/machines.md).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.system import revision
from pipeline.system.errors import UserError
from tools import packages
from tools.packages import PROJECT

KIT = PROJECT / ".cache" / "gpu-kit"
SITE = "site.zip"
"""The packages, in the kit."""
NEEDED = ["typer", "numpy", "pillow", "simplejpeg", "safetensors", "msgspec", "ruamel.yaml", "requests", "pytest", "hypothesis"]
LEFT_OUT = ("results/",)
"""Not needed there, and large."""


def main() -> None:
    """Make the kit; exit code 2 if that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_kit")
    parser.add_argument("--python", default="3.12", help="the version of Python on that machine (3.12)")
    parser.add_argument("--out", type=Path, default=KIT, help="where to make it (.cache/gpu-kit)")
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.python)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    commit = (arguments.out / revision.CARRIED).read_text().strip()
    print(f"{arguments.out}: {commit}, {size / 1e6:.0f} MB, for Python {arguments.python}; on the machine: cd there; python3 -m tools.gpu")


def build(out: Path, python: str) -> None:
    """Make the kit in the folder `out`, anew.

    Raises:
        UserError: packages cannot be had, or this is no Git repository.
    """
    listed = subprocess.run(["git", "-C", PROJECT, "ls-files", "-z", "-co", "--exclude-standard"], capture_output=True, check=False)
    commit = revision.describe(PROJECT / "pipeline")
    if listed.returncode or commit is None:
        raise UserError(f"{PROJECT}: Git does not list its files; make the kit in a clone")
    shutil.rmtree(out, ignore_errors=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (PROJECT / name).is_file() and not name.startswith(LEFT_OUT):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, out / name)
    (out / revision.CARRIED).write_text(f"{commit}\n")
    with tempfile.TemporaryDirectory() as site:
        packages.install(NEEDED, Path(site), python, "x86_64-manylinux_2_28")
        shutil.make_archive(str(out / Path(SITE).stem), "zip", site)


if __name__ == "__main__":
    main()

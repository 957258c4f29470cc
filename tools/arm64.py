"""`make test-arm64`: the goldens and some training steps on ARM64, emulated by QEMU on an x86-64 Debian; nothing is installed.

Debian's arm64 Python, QEMU and PyTorch's aarch64 wheel are unpacked into `.cache/arm64`, once: an interrupted set-up goes on where
it stopped, and one that is there is used. QEMU's user mode runs single programs, so neither root nor a virtual machine is needed.
The emulated processor is Arm's Neoverse N1; `--processor max` has all instructions that QEMU knows, SVE too, which it plays slowly.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.system.errors import UserError
from tools import packages
from tools.packages import PROJECT

FOLDER = PROJECT / ".cache" / "arm64"
TORCH = "2.10.0"
"""The newest whose aarch64 wheel on the package index computes on the CPU alone: later ones need NVIDIA's packages to be imported."""
PROCESSOR = "neoverse-n1"
"""What QEMU plays: a processor of servers that PyTorch's wheel computes on, without SVE, with which a step takes ten times as long."""
DEBIAN = ("python3", "libstdc++6", "qemu-user-static:amd64")
PYTHON = ("numpy", "pillow", "safetensors", "msgspec", "ruamel.yaml", "typer", "requests")
"""What the pipeline imports for goldens and the demo, beside PyTorch."""
GOLDENS = """
import sys
from tests import goldens
cases = {case: lines for case, lines in goldens.CASES.items() if not sys.argv[1:] or case.rpartition("-")[2] in sys.argv[1:]}
differences = {case: goldens.first_difference(lines(goldens.Pipeline()), goldens.golden(case)) for case, lines in cases.items()}
for case, difference in differences.items():
    print(f"  {case}: {difference or 'the golden'}", flush=True)
sys.exit(any(differences.values()))
"""
DEMO = """
import sys
from pathlib import Path
wrapper, emulator, folder = sys.argv[1:]
sys.executable = wrapper  # what the demo starts is emulated too
from pipeline.machine import demo
sys.exit(not demo.demo(Path(folder), demo.variants()[1:2], emulator))  # the stages have all threads, this one has one
"""
APT = """
APT::Architecture "arm64";
#clear APT::Architectures;
APT::Architectures {{ "arm64"; "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}";
"""


def main(words: list[str] | None = None) -> None:
    """Set up, run, compare; exit code 0 if exact gives what it gives here and native does not, 3 if not, 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m tools.arm64")
    parser.add_argument("--demo", action="store_true", help="run the whole demo instead, and leave the record of the emulated machine")
    parser.add_argument("--set-up", action="store_true", help="only fetch what is needed, for a later run")
    parser.add_argument("--goldens", nargs="+", default=[], metavar="NAME", help="only those, such as functions")
    parser.add_argument("--processor", default=PROCESSOR, help="one that QEMU's -cpu knows; %(default)s by default")
    asked = parser.parse_args(words)
    try:
        if problem := missing():
            raise UserError(f"make test-arm64: {problem}")
        run = set_up if asked.set_up else demo if asked.demo else functools.partial(check, names=asked.goldens)
        sys.exit(0 if run(asked.processor) else 3)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def missing() -> str | None:
    """What this machine lacks, with the remedy, or None."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"this is {platform.system()} on {platform.machine()}, not Linux on x86_64; on an ARM64 machine `make test` does it"
    if programs := [name for name in ("apt-get", "dpkg-deb", "tar") if not shutil.which(name)]:
        return f"{' and '.join(programs)} not found; use Debian, or its container"
    return None


def set_up(processor: str) -> bool:
    """Fetch what is needed; true, for it raises UserError where it cannot."""
    emulated(processor)
    return True


def check(processor: str, names: list[str]) -> bool:
    """Run the goldens of these names, or all, and steps, emulated, and say what came of each; whether all is as it must be."""
    start = time.monotonic()
    program = emulated(processor)
    print(f"Debian's Python and PyTorch {TORCH} for {processor} are in {FOLDER} ({time.monotonic() - start:.0f} s)", flush=True)
    words = "exact:1", "native:1", "ResNet-20:1", "exact:2"  # in one process, for an emulated one takes long to import PyTorch
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(_run, [*program, "-c", GOLDENS, *names], 1)
        ((*one, two), here) = pool.map(lambda python: _steps(python, *words), (program, [sys.executable]))
        goldens = running.result()
    print(f"the weights after some steps: x86-64 {here[0]}, ARM64 with 1 thread {one[0]}, with 2 threads {two}")
    print(f"native numerics:              x86-64 {here[1]}, ARM64 {one[1]}")
    print(f"ResNet-20:                    x86-64 {here[2]}, ARM64 {one[2]}", flush=True)
    same = here[0] == one[0] == two and here[2] == one[2]
    other = here[1] != one[1]
    print(goldens.stdout + "".join(goldens.stderr.splitlines(keepends=True)[-1:] if goldens.returncode else []), end="", flush=True)
    golden = goldens.returncode == 0
    said = "exact is the same" if same else "exact is NOT the same"
    said += ", native is another" if other else ", native is the SAME, so this proves nothing"
    print(f"{said}, the goldens are {'met' if golden else 'NOT met'}; all in {time.monotonic() - start:.0f} s")
    return same and other and golden


def demo(processor: str) -> bool:
    """Run the demo, emulated, with all threads and with one, for the better part of an hour; whether all its fingerprints are right."""
    program = emulated(processor)
    wrapper = FOLDER / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(program)} "$@"\n')
    wrapper.chmod(0o755)
    version = subprocess.run([program[2], "--version"], capture_output=True, text=True, check=True).stdout
    emulator = f"QEMU {version.split('version ')[1].split()[0]} (-cpu {processor})"
    command = [*program, "-c", DEMO, str(wrapper), emulator, str(FOLDER / "demo")]
    return subprocess.run(command, cwd=PROJECT, env=_environment(None), check=False).returncode == 0


def emulated(processor: str) -> list[str]:
    """The command that runs an ARM64 Python on this processor, set up with what the pipeline needs if need be. Raises UserError."""
    root = _system()
    interpreter = (root / "usr/bin/python3").resolve()
    site = _packages(interpreter.name.removeprefix("python"))
    (emulator,) = (root / "emulator").iterdir()
    return ["env", f"PYTHONPATH={site}:{PROJECT}", str(emulator), "-cpu", processor, "-L", str(root), str(interpreter)]


def _system() -> Path:
    """A folder with Debian's files for arm64 and, in `emulator`, QEMU for this machine."""
    root = FOLDER / f"system-{_key(DEBIAN, Path('/etc/os-release').read_text())}"
    if root.exists():
        return root
    apt = FOLDER / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "apt.conf").write_text(APT.format(folder=apt))
    _apt(apt, "Debian's list of packages for arm64", "update")
    _apt(apt, "Debian's packages for arm64", "install", "-y", "--download-only", *DEBIAN)
    part = root.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "emulator").mkdir(parents=True)
    for package in sorted((apt / "archives").glob("*.deb")):
        if package.name.startswith("qemu-"):
            unpacked = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
            filtered = ["--wildcards", "./usr/bin/qemu-aarch64*", "--exclude", "*_be*", "--strip-components", "3"]
            subprocess.run(["tar", "x", "-C", part / "emulator", *filtered], stdin=unpacked.stdout, check=True)
            if unpacked.wait():
                raise UserError(f"{package}: cannot be unpacked; remove it and run again")
        else:
            subprocess.run(["dpkg-deb", "-x", package, part], check=True)
    part.rename(root)
    shutil.rmtree(apt)
    return root


def _packages(version: str) -> Path:
    """A folder with PyTorch and what the pipeline imports, for aarch64 and this version of Python."""
    site = FOLDER / f"site-{_key((TORCH, version, *PYTHON), packages.LOCKED.read_text())}"
    if not site.exists():
        part = site.with_suffix(".part")
        packages.install([f"torch=={TORCH}", *PYTHON], part, version, "aarch64-manylinux_2_28")
        part.rename(site)
    return site


def _key(names: tuple[str, ...], text: str) -> str:
    return hashlib.sha256("\n".join((*names, text)).encode()).hexdigest()[:12]


def _apt(folder: Path, what: str, *words: str) -> None:
    """Run apt-get with a state of its own in `folder`, so that this machine's packages stay as they are."""
    done = subprocess.run(
        ["apt-get", "-q", *words], env={**os.environ, "APT_CONFIG": str(folder / "apt.conf")}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("E:")), said[-1] if said else "it says nothing")
        raise UserError(f"make test-arm64: cannot fetch {what} ({reason.strip()[:200]}); it needs Debian's archive and a package index")


def _steps(program: list[str], *names: str) -> list[str]:
    """The fingerprints that `tests.steps` prints for these numerics."""
    done = _run([*program, "-m", "tests.steps", *names], 1)
    if done.returncode:
        raise UserError(f"the steps ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing was said'])[-1]}")
    return done.stdout.split()


def _run(command: list[str], threads: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=PROJECT, env=_environment(threads), capture_output=True, text=True, check=False)


def _environment(threads: int | None) -> dict[str, str]:
    # PyTorch's threads would spin while they wait, which emulated threads on a busy machine cannot afford.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    return environment if threads is None else {**environment, "OMP_NUM_THREADS": str(threads)}


if __name__ == "__main__":
    main()

"""What was computed on a machine, and with which bits: the record that `make demo` leaves and `results/machines/` collects.

A record names the processor, the system and the versions, and never the machine, its user or a folder.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Literal

import msgspec

from pipeline import device, sources
from pipeline.exact import VERSION
from pipeline.runs.outputs import METRICS, PREDICTIONS, read_bytes
from pipeline.system import files, revision, schema

RECORD = "machine.json"
RECORDS = "results/machines"
"""Where a record is sent."""
OLDEST_INSTRUCTIONS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
"""Settings that keep PyTorch, oneDNN and MKL from all newer instructions of the processor; they make no other processor of it."""
TELLING = re.compile(r"sse4_2|avx|avx2|fma|avx512(f|_bf16|_fp16)|amx_(tile|bf16)|asimd|sve2?|bf16|i8mm|sme2?")
"""The instruction sets that PyTorch, oneDNN, MKL or OpenBLAS choose kernels by, as Linux names them."""


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One way to train the demo's weights."""

    name: str
    device: str
    """As params.yaml names it."""
    threads: int | None = None
    """Of PyTorch on the CPU; None where it chooses."""
    workers: int = 1
    settings: dict[str, str] = {}
    """Environment variables that are set, but for the number of threads."""
    resumed_from: str | None = None
    """The device on which the training was begun, where that is another."""


class Outcome(Variant, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a variant gave."""

    fingerprint: str
    """Of the weights."""
    evaluation: str | None = None
    """The SHA-256 of metrics and predictions, where it was evaluated."""
    evaluation_batch: int | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A machine and what the demo gave there."""

    format: Literal[1]
    date: str
    """The day, in UTC, as YYYY-MM-DD."""
    revision: str | None
    """Git's name for the commit of the sources; None where it is not known."""
    numerics: str
    expected: str
    """What the demo's fingerprint must be with these sources."""
    architecture: str
    processor: str
    emulator: str | None = None
    """What plays the processor, where it is not there."""
    instruction_sets: list[str]
    cpus: int
    """That a process may use."""
    accelerators: dict[str, str] = {}
    """Name for params.yaml -> what it is."""
    driver: str | None = None
    """NVIDIA's."""
    cuda: str | None = None
    system: str
    image: str | None = None
    """Which of the project's images the container was of; None where it was none."""
    python: str
    torch: str
    outcomes: list[Outcome]

    def slug(self) -> str:
        """A name for the record's file."""
        what = [*self.accelerators.values()][:1] or [self.processor]
        words = [*what, self.architecture, self.image and f"image {self.image}", f"torch {self.torch.partition('+')[0]}", self.date]
        return re.sub(r"[^a-z0-9.]+", "-", " ".join(filter(None, words)).lower()).strip("-")


def describe(expected: str, outcomes: list[Outcome], emulator: str | None = None) -> Record:
    """The record of this machine. With an emulator the processor is the emulator's, so its own names are left out."""
    import torch

    return Record(
        format=1,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        revision=revision.describe(sources.PACKAGE),
        numerics=VERSION,
        expected=expected,
        architecture=platform.machine(),
        processor=emulator or _processor(),
        emulator=emulator,
        instruction_sets=[] if emulator else _instruction_sets(),
        cpus=device.cpu_limit(),
        accelerators=device.accelerators(),
        driver=device.driver_version(),
        cuda=torch.version.cuda if device.accelerators() else None,
        system=_system(),
        image=os.environ.get("PIPELINE_IMAGE"),
        python=platform.python_version(),
        torch=str(torch.__version__),
        outcomes=outcomes,
    )


def write(path: Path, record: Record) -> None:
    """Write a record. Raises UserError."""
    files.write_json(path, msgspec.to_builtins(record))


def read(path: Path) -> Record:
    """Read a record. Raises UserError when it is missing, damaged or of another format."""
    return schema.decode(Record, read_bytes(path), str(path))


def evaluation_digest(outputs: Path) -> str:
    """SHA-256, in hex, over the metrics and the predictions in `outputs`. Raises UserError."""
    return hashlib.sha256(read_bytes(outputs / METRICS) + read_bytes(outputs / PREDICTIONS)).hexdigest()


def _processor() -> str:
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError):
            asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
            return asked.stdout.strip() or platform.machine()
    return device.available()[device.CPU].rpartition(",")[0]


def _instruction_sets() -> list[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return sorted(word for word in set(value.split()) if TELLING.fullmatch(word))
    return []


def _system() -> str:
    """The operating system and its version, without what a build of a kernel says of who built it."""
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    with contextlib.suppress(OSError):
        return str(platform.freedesktop_os_release()["PRETTY_NAME"])
    return platform.system()

"""`make setup`: the locked requirements and PyTorch into this environment, with uv. Needs nothing but Python and uv.

PyTorch comes from the index that TORCH_INDEX_URL names. Where that is not set, Linux without an NVIDIA driver takes the CPU wheels
from PyTorch's own index if it answers in time, and everything else takes the default index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread
from urllib.parse import unquote
from urllib.request import urlopen

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
SECONDS = 5.0
"""How long that index may take to answer."""
DRIVER = Path("/dev/nvidiactl")
"""The device of NVIDIA's driver on Linux; under WSL there is none, but `nvidia-smi` is."""


def main() -> None:
    """Install everything and say in one line which PyTorch; end with uv's exit code if it fails."""
    environment = {**os.environ, **pips_index()}
    install(["--require-hashes", "-r", str(REQUIREMENTS / "dev.txt")], environment)
    index, which = torch_index()
    print(f"PyTorch: {which}", flush=True)
    install([*(["--default-index", index] if index else []), "-r", str(REQUIREMENTS / "torch.txt")], environment)


def install(what: list[str], environment: dict[str, str]) -> None:
    """Install into this Python's environment; end with uv's exit code if it fails. Progress is for a terminal.

    Compiled, as pip does and uv does only when told: else the first start, and every one where Python may write no compiled files
    (PYTHONDONTWRITEBYTECODE, another user's folder), takes twice the time.
    """
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    uv = [sys.executable, "-m", "uv", "pip", "install", "--compile-bytecode", *quiet, "--python", sys.executable]
    if code := subprocess.run([*uv, *what], env=environment).returncode:
        sys.exit(code)


def pips_index() -> dict[str, str]:
    """The index that pip is set to use, as uv's variable, for uv reads no setting of pip's. Nothing if uv has one of its own."""
    if {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & os.environ.keys():
        return {}
    for key in (":env:.index-url", "global.index-url"):
        asked = subprocess.run([sys.executable, "-m", "pip", "config", "get", key], capture_output=True, text=True)
        if asked.returncode == 0:
            return {"UV_DEFAULT_INDEX": asked.stdout.strip()}
    return {}


def torch_index() -> tuple[str, str]:
    """The index that PyTorch comes from, empty for the default one, and the words that say which and how much it loads."""
    if named := os.environ.get("TORCH_INDEX_URL"):
        return named, "from the index that TORCH_INDEX_URL names"
    if not sys.platform.startswith("linux"):
        return "", "from the default index, about 100 MB"
    usual = "the CUDA build from the default index, about 3 GB"
    if DRIVER.exists() or shutil.which("nvidia-smi"):
        return "", f"{usual}; this machine has an NVIDIA driver"
    if answers(CPU_WHEELS):
        return CPU_WHEELS, f"CPU wheels from {CPU_WHEELS}, about 200 MB; this machine has no NVIDIA driver"
    return "", f"{usual}; no NVIDIA driver is here, but {CPU_WHEELS} does not answer"


def answers(index: str) -> bool:
    """Whether an index has all that torch.txt names, and says so within SECONDS, whatever may keep it."""
    wanted = [line.split("==") for line in (REQUIREMENTS / "torch.txt").read_text().split()]
    found: list[bool] = []

    def ask() -> None:
        try:
            for name, version in wanted:
                with urlopen(f"{index}/{name}/", timeout=SECONDS) as page:  # noqa: S310 - the address is ours
                    found.append(f"{name}-{version}" in unquote(page.read().decode()))
        except (OSError, ValueError):
            found.append(False)

    asking = Thread(target=ask, daemon=True)  # a thread, for no timeout of urlopen bounds the search for a name, or a page that trickles
    asking.start()
    asking.join(SECONDS)
    return len(found) == len(wanted) and all(found)


if __name__ == "__main__":
    main()

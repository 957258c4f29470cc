"""`make setup` takes PyTorch from the right index: the one that is named, CPU wheels where no GPU can be, else the default one."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools import setup

TORCH, VISION = (line.split("==")[1] for line in (ROOT / "requirements" / "torch.txt").read_text().split())


def put_wheel(index: Path, name: str, version: str) -> None:
    """Put a wheel of one empty module onto the page of `name` in a package index (PEP 503)."""
    wheel, about = index / name / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    files = {f"{name}/__init__.py": "",
             f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
             f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}  # fmt: skip
    lines = [f"{file},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
             for file, text in files.items()]  # fmt: skip
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in {**files, f"{about}/RECORD": "\n".join([*lines, f"{about}/RECORD,,"])}.items():
            archive.writestr(file, text)
    (index / name / "index.html").write_text(f'<a href="{wheel.name.replace("+", "%2B")}">{wheel.name.replace("+", "%2B")}</a>')


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an index on loopback, which has taken the place of PyTorch's own; Linux without a driver."""
    for name in ("TORCH_INDEX_URL", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "index"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(setup, "CPU_WHEELS", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(setup, "DRIVER", tmp_path / "nvidiactl")
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setenv("PATH", str(tmp_path))
        yield folder
        server.shutdown()


@pytest.fixture
def wheels(index: Path) -> Path:
    put_wheel(index, "torch", f"{TORCH}+cpu")
    put_wheel(index, "torchvision", f"{VISION}+cpu")
    return index


def test_linux_without_a_driver_takes_the_cpu_wheels(wheels):
    taken, said = setup.torch_index()
    assert (taken, said) == (setup.CPU_WHEELS, f"CPU wheels from {taken}, about 200 MB; this machine has no NVIDIA driver")


def test_the_index_that_is_named_decides_and_is_not_shown_for_it_may_hold_a_password(wheels, monkeypatch):
    monkeypatch.setenv("TORCH_INDEX_URL", "https://me:secret@mirror/simple")
    assert setup.torch_index() == ("https://me:secret@mirror/simple", "from the index that TORCH_INDEX_URL names")
    monkeypatch.setenv("TORCH_INDEX_URL", "")
    assert setup.torch_index()[0] == setup.CPU_WHEELS


@pytest.mark.parametrize("sign", ["nvidiactl", "nvidia-smi"])
def test_a_driver_means_the_cuda_build_of_the_default_index(sign, wheels, tmp_path):
    (tmp_path / sign).touch(mode=0o755)
    assert setup.torch_index() == ("", "the CUDA build from the default index, about 3 GB; this machine has an NVIDIA driver")


def test_another_system_takes_the_default_index(wheels, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert setup.torch_index() == ("", "from the default index, about 100 MB")


@pytest.mark.parametrize("there", [{}, {"torch": TORCH}, {"torch": "2.0.0", "torchvision": VISION}], ids=str)
def test_an_index_without_the_pinned_versions_is_passed_over(there, index):
    for name, version in there.items():
        put_wheel(index, name, version)
    taken, said = setup.torch_index()
    assert (taken, said.partition("; ")[2]) == ("", f"no NVIDIA driver is here, but {setup.CPU_WHEELS} does not answer")


def test_no_network_means_the_default_index(index, monkeypatch):
    monkeypatch.setattr(setup, "CPU_WHEELS", "http://does-not-exist.invalid")
    assert setup.torch_index()[0] == ""


def test_an_index_whose_page_trickles_is_not_waited_for(wheels, monkeypatch):
    def trickle(self: Quiet) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            self.send_response(200)
            self.end_headers()
            for _ in range(20):
                time.sleep(0.05)
                self.wfile.write(b" ")
            self.wfile.write(Path(self.translate_path(self.path), "index.html").read_bytes())

    monkeypatch.setattr(Quiet, "do_GET", trickle)
    monkeypatch.setattr(setup, "SECONDS", 60)
    assert setup.torch_index()[0] == setup.CPU_WHEELS
    monkeypatch.setattr(setup, "SECONDS", 0.5)
    assert setup.torch_index()[0] == ""


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, {}),
        ({"PIP_INDEX_URL": "http://mirror/simple"}, {"UV_DEFAULT_INDEX": "http://mirror/simple"}),
        ({"PIP_INDEX_URL": "http://mirror/simple", "UV_DEFAULT_INDEX": "http://other"}, {}),
    ],
    ids=str,
)
def test_uv_takes_pips_index_where_it_has_none_of_its_own(variables, found, monkeypatch):
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert setup.pips_index() == found


def test_the_cpu_wheels_land_in_the_environment(wheels, tmp_path):
    """In an environment of its own, whose uv is this one's; what is locked is left out, for it would need an index."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "new"], check=True)
    python = tmp_path / "new" / "bin" / "python"
    (site,) = (tmp_path / "new" / "lib").glob("python*/site-packages")
    (uv,) = (Path(path) / "uv" for path in sys.path if (Path(path) / "uv" / "__init__.py").exists())
    (site / "uv").symlink_to(uv)
    (tmp_path / "new" / "bin" / "uv").symlink_to(Path(sys.executable).parent / "uv")
    (tmp_path / "dev.txt").touch()
    (tmp_path / "torch.txt").write_bytes((ROOT / "requirements" / "torch.txt").read_bytes())
    code = (
        "import pathlib, sys; from tools import setup\n"
        f"setup.CPU_WHEELS, setup.REQUIREMENTS = {setup.CPU_WHEELS!r}, pathlib.Path({str(tmp_path)!r})\n"
        "setup.DRIVER, sys.platform = setup.REQUIREMENTS / 'nvidiactl', 'linux'\n"
        "setup.main()"
    )
    environment = {**os.environ, "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_DEFAULT_INDEX": "http://does-not-exist.invalid"}
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"PyTorch: CPU wheels from {setup.CPU_WHEELS}, about 200 MB")
    listed = subprocess.run([sys.executable, "-m", "uv", "pip", "list", "--python", python, "--format", "json"],
                            capture_output=True, text=True, check=True)  # fmt: skip
    assert {p["name"]: p["version"] for p in json.loads(listed.stdout)} == {"torch": f"{TORCH}+cpu", "torchvision": f"{VISION}+cpu"}
    assert list((site / "torch" / "__pycache__").glob("__init__.*.pyc")), "not compiled: every start of a program would do it"

"""`make setup`: what it installs, from where, and that no setting of pip's or uv's makes it install elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system.errors import MAKE_AGAIN
from tests.conftest import ROOT

STRANGE = {
    "PIP_USER": "1", "PIP_TARGET": "/no/such", "PIP_PREFIX": "/no/such", "PIP_REQUIRE_HASHES": "1", "PIP_DRY_RUN": "1", "PIP_NO_DEPS": "1",
    "UV_SYSTEM_PYTHON": "1", "UV_PYTHON": "3.8", "UV_REQUIRE_HASHES": "1", "UV_NO_BUILD": "1", "UV_EXCLUDE_NEWER": "2001-01-01",
    "UV_CONSTRAINT": "/no/such", "UV_OVERRIDE": "/no/such", "PYTHONPATH": "/no/such",
}  # fmt: skip
STUB = """#!{python} -IS
import os, sys
words = sys.argv[1:]
if words[:2] == ["-m", "venv"]:
    os.makedirs(".venv/bin")
    os.symlink(os.path.abspath(__file__), ".venv/bin/python")
trusted = [os.environ["SSL_CERT_FILE"]] if "SSL_CERT_FILE" in os.environ else []
said = [os.environ.get("UV_DEFAULT_INDEX", "-"), *trusted, *(name for name in {strange!r} if name in os.environ), *words]
print(*said, file=open("log", "a"))
sys.exit("--torch-backend" in words and "FAIL" in os.environ)
"""


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """`make setup` with a Python that only notes what it is told: a line each, the index first."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "python").write_text(STUB.format(python=Path(sys.executable).resolve(), strange=list(STRANGE)))
    (tmp_path / "python").chmod(0o755)
    for name in (
        "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", "TORCH_INDEX_URL", "UV_TORCH_BACKEND", "SSL_CERT_FILE", "PIP_CERT",
        "MAKEFLAGS", "MAKELEVEL",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)

    def run(**variables: str) -> list[str]:
        make = ["make", "--silent", "setup", f"PYTHON={tmp_path / 'python'}"]
        done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, env=os.environ | variables)
        assert done.returncode == 0, done.stderr
        return [
            line.replace("--quiet --compile-bytecode --python .venv/bin/python ", "")
            for line in (tmp_path / "log").read_text().splitlines()
        ]

    return run


UV = "-m uv pip install"


@pytest.mark.fault(70)
def test_no_setting_of_pips_or_uvs_reaches_the_set_up_that_installs_elsewhere(setup):
    lines = setup(**STRANGE)
    assert len(lines) == 8
    assert [line for line in lines if set(line.split()) & STRANGE.keys()] == []
    assert lines[-1] == f"- {UV} --no-deps --no-build-isolation --editable ."


def test_uv_chooses_pytorchs_build_and_where_its_index_does_not_answer_the_usual_one_serves(setup):
    assert setup(FAIL="1")[-3:-1] == [f"- {UV} --torch-backend auto -r requirements/torch.txt", f"- {UV} -r requirements/torch.txt"]


@pytest.mark.fault(70)
def test_the_index_that_is_named_for_pytorch_and_the_one_that_pip_is_set_to_are_heeded(setup):
    lines = setup(TORCH_INDEX_URL="https://torch/simple", PIP_INDEX_URL="https://mirror/simple")
    assert f"https://mirror/simple {UV} --require-hashes -r requirements/dev.txt" in lines
    assert lines[-2] == f"https://mirror/simple {UV} --default-index https://torch/simple -r requirements/torch.txt"


@pytest.mark.fault(70)
def test_the_certificates_that_pip_is_told_to_trust_uv_trusts_too(setup):
    assert setup(PIP_CERT="/ca.pem")[-1] == f"- /ca.pem {UV} --no-deps --no-build-isolation --editable ."


@pytest.mark.fault(73)
def test_the_remedy_for_a_broken_environment_makes_it_again_which_make_setup_alone_does_not(setup, tmp_path):
    lines = setup()
    assert setup() == lines
    assert "rm -r .venv; make setup," in MAKE_AGAIN
    shutil.rmtree(tmp_path / ".venv")
    assert len(setup()) == 2 * len(lines)

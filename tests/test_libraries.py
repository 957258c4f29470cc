"""Libraries below us that are missing, broken, or set to what they die of: one line with the remedy, from each command."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import cli
from pipeline.machine import doctor
from pipeline.system import libraries
from pipeline.system.errors import MAKE_AGAIN
from tests import kept_runs
from tests.conftest import ROOT, command

MAIN = ROOT / "pipeline" / "__main__.py"


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- variables -------------------------------------------------------------------------------------------------------


@pytest.mark.fault(56)
def test_a_variable_that_is_set_to_nothing_is_not_set(monkeypatch):
    nothing = {"WORLD_SIZE": "", "RANK": " ", "LOCAL_RANK": "", "MASTER_ADDR": "", "GLOO_SOCKET_IFNAME": "", "COLUMNS": "0", "LINES": "x",
               "OMP_NUM_THREADS": "", "TORCH_LOGS": " ", "PIPELINE_MIRROR": "\t", "DVC_STAGE": "",
               "OMP_WAIT_POLICY": ""}  # fmt: skip
    for name, value in nothing.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    libraries.settle_variables()
    assert not set(nothing) & set(os.environ)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["MKL_NUM_THREADS"]) == ("", "3"), "no GPU is something"
    assert os.environ.pop("GOMP_SPINCOUNT") == "20000", "for OMP_WAIT_POLICY says nothing"


@pytest.mark.fault(56)
@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TORCH_LOGS", "bogus", "ValueError: Invalid log settings: bogus"),
    ],
)
def test_a_variable_that_pytorch_dies_of_is_one_line_that_names_it(variable, value, reason, workspace):
    done = command("train", folder=workspace, **{variable: value})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"error: torch cannot be imported ({reason}")
    assert (
        f"; try it without OMP_NUM_THREADS='1' OMP_WAIT_POLICY='PASSIVE' {variable}='{value}', or make the environment again" in done.stderr
    )


@pytest.mark.fault(56)
def test_commands_that_need_no_pytorch_do_not_mind_its_variables(workspace):
    done = command("fingerprint", folder=workspace, TORCH_LOGS="bogus", PYTORCH_CUDA_ALLOC_CONF="bogus", GOMP_CPU_AFFINITY="bogus")
    assert (done.returncode, done.stderr.startswith("error: outputs/model.safetensors: not found")) == (2, True), done.stderr


# --- modules of the user's own --------------------------------------------------------------------------------------------


@pytest.mark.fault(64)
@pytest.mark.parametrize("name", ["typing", "csv", "numpy", "random", "logging", "numpy/__init__"])
def test_a_module_of_the_users_own_beside_params_yaml_is_not_taken_for_pythons(name, workspace):
    (workspace / name).parent.mkdir(exist_ok=True)
    (workspace / f"{name}.py").write_text("mine = 1\n")
    for runs in ("A", "B"):
        shutil.move(kept_runs.keep(), runs)
    done = command("compare", "A", "B", folder=workspace)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.fault(64)
@pytest.mark.parametrize("name", ["numpy", "random", "logging", "numpy/__init__", "typing", "traceback"])
@pytest.mark.parametrize("content", ["mine = 1", "raise ValueError('no data')"])
def test_a_file_that_stands_in_the_way_of_a_library_is_named(name, content, workspace):
    (workspace / name).parent.mkdir(exist_ok=True)
    (workspace / f"{name}.py").write_text(f"{content}\n")
    done = subprocess.run([sys.executable, "-m", "pipeline", "train"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": f"{workspace}:{ROOT}"})  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {name}.py stands in the way of the module of that name (")
    assert done.stderr.endswith("); rename it, or take its folder out of PYTHONPATH\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.fault(64)
@pytest.mark.parametrize("missing", ["msgspec", "safetensors"])
def test_a_folder_of_packages_in_pythonpath_is_not_blamed_for_one_that_is_missing(missing, workspace):
    site = workspace / "site-packages"
    site.mkdir()
    (site / "numpy").symlink_to(Path(np.__file__).parent)
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules['{missing}'] = None\n")
    code = f"import numpy, {missing}"
    done = subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}\nexcept Exception as error:\n    from pipeline.system import libraries\n"
         "    print(numpy.__file__, libraries.failed_import(error), sep='\\n')"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}"},
    )  # fmt: skip
    remedy = "use the project's own: `. .venv/bin/activate`, or make repro (make setup makes it)"
    said = f"import of {missing} halted; None in sys.modules for {sys.executable}; {remedy}"
    if Path(sys.prefix) == ROOT / ".venv":
        said = f"{missing} cannot be imported (ModuleNotFoundError: import of {missing} halted; None in sys.modules); {MAKE_AGAIN}"
    assert done.stdout.splitlines() == [str(site / "numpy" / "__init__.py"), said], done.stderr


# --- doctor --------------------------------------------------------------------------------------------------------------


@pytest.mark.fault(57)
@pytest.mark.parametrize(
    "variables",
    [{"TORCH_LOGS": "bogus"}],
    ids=lambda variables: next(iter(variables)),
)
def test_doctor_answers_when_pytorch_cannot_be_imported(variables, workspace):
    done = command("doctor", folder=workspace, **variables)
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert (done.returncode, done.stderr, list(lines)) == (3, "", list(doctor.CHECKS))
    assert lines["device"].startswith("!!  device       torch cannot be imported (")
    assert next(iter(variables)) in lines["device"]
    assert lines["threads"] == "!!  threads      not known: PyTorch cannot be imported"
    assert lines["disk"].startswith(("ok", "!!  disk         0."))


@pytest.mark.fault(57)
@pytest.mark.parametrize(
    "error", [SystemExit(3), ValueError("x\ny"), KeyError("k"), RecursionError(), MemoryError(), UnicodeDecodeError("a", b"", 0, 1, "r")]
)
def test_whatever_a_check_raises_is_its_finding_on_one_line(error, monkeypatch):
    def broken() -> str:
        raise error

    monkeypatch.setitem(doctor.CHECKS, "disk", broken)
    (told,) = doctor.examine("disk")
    assert (told.ok, told.text.isprintable()) == (False, True)
    assert type(error).__name__ in told.text
    assert told.text.endswith(MAKE_AGAIN)


@pytest.mark.fault(57)
def test_doctor_answers_when_no_package_can_be_imported_but_the_command_lines(workspace):
    (workspace / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'msgspec', 'yaml', 'numpy', 'dvc'): sys.modules[name] = None\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{workspace}:{ROOT}"}
    done = subprocess.run([sys.executable, "-m", "pipeline", "doctor"], capture_output=True, text=True, env=environment)
    assert [line.split()[1] for line in done.stdout.splitlines()] == list(doctor.CHECKS), done.stderr
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("!!  device       ")
    assert "import of torch halted; None in sys.modules" in done.stdout.splitlines()[0]


@pytest.mark.fault(57)
def test_doctor_names_each_package_that_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "run.in").write_text("# what for\nnumpy\nno-such-package  # why\nPyYAML\nnone_of_ours==1\n")
    monkeypatch.setattr(doctor, "REQUIREMENTS", tmp_path / "run.in")
    assert doctor.examine("packages") == [doctor.Finding("packages", False, f"not installed: no-such-package, none_of_ours; {MAKE_AGAIN}")]
    monkeypatch.undo()
    assert doctor.examine("packages")[0].ok


@pytest.mark.fault(57)
@pytest.mark.fault(62)
def test_doctor_tells_that_dvc_would_start_the_stages_with_another_python(workspace, monkeypatch):
    programs = workspace / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/nowhere")
    assert doctor.examine("python")[0].text.startswith(f"dvc.yaml runs `python`, which is not there and not {sys.executable}; activate")
    (programs / "python").symlink_to(Path(sys.executable).resolve())  # not the environment's, but its base
    (told,) = doctor.examine("python")
    assert (told.ok, f"which is {programs}/python and not {sys.executable}" in told.text) == (False, True)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert doctor.examine("python")[0].ok


# --- the Python that runs --------------------------------------------------------------------------------------------------


@pytest.mark.fault(62)
@pytest.mark.parametrize("version", [(3, 4), (3, 7), (3, 10)])
def test_a_python_that_is_too_old_can_read_the_first_file_and_says_so(version):
    ast.parse(MAIN.read_text(), feature_version=version)
    ast.parse((ROOT / "pipeline" / "__init__.py").read_text(), feature_version=version)
    code = f"import runpy, sys; sys.version_info = {(*version, 0)}; runpy.run_path({str(MAIN)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    this_python = f"{sys.executable} is Python {version[0]}.{version[1]}"
    line = f"error: Python 3.11 or later is needed, and {this_python}; use the project's own: `. .venv/bin/activate`, or make repro\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.fault(62)
def test_a_python_without_the_packages_is_one_line_with_the_remedy():
    """As when `dvc` is called by its path: it runs `python`, and that is the one of PATH."""
    done = subprocess.run([sys.executable, "-S", "-m", "pipeline", "train"], cwd=ROOT, capture_output=True, text=True)
    remedy = "use the project's own: `. .venv/bin/activate`, or make repro (make setup makes it)"
    said = f"No module named 'typer' for {sys.executable}; {remedy}"
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")


@pytest.mark.fault(62)
def test_a_package_that_is_missing_only_when_it_is_used_is_one_line_too(capsys, monkeypatch, workspace):
    monkeypatch.setitem(sys.modules, "msgspec", None)
    for name in [name for name in sys.modules if name.startswith("pipeline.") and not name.startswith(("pipeline.cli", "pipeline.system"))]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.answer(["fingerprint", "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "import of msgspec halted; None in sys.modules" in said
    assert said.count("\n") == 1


@pytest.mark.fault(62)
def test_a_library_that_is_there_and_broken_is_one_line_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "brokenlibrary.py").write_text("from brokeninside import x\n")
    (tmp_path / "brokeninside.py").write_text("raise OSError('libx.so.6:\\ncannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OSError, match=r"libx") as failure:
        __import__("brokenlibrary")
    assert libraries.failed_import(failure.value) == (
        f"brokenlibrary cannot be imported (OSError: libx.so.6: cannot open shared object file); {MAKE_AGAIN}"
    )


def test_an_error_that_did_not_arise_in_an_import_is_not_taken_for_one():
    with pytest.raises(ValueError, match="ours") as failure:
        raise ValueError("ours")
    assert libraries.failed_import(failure.value) is None

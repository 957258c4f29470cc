"""`export --to FILE.onnx`: bytes in, the run's classes out, checked before it is written."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import params
from pipeline.data import dataset, synthetic
from pipeline.numerics import native
from pipeline.system.errors import UserError
from pipeline.weights.export import export
from pipeline.weights.export import onnx as written
from pipeline.weights.predict import Network
from tests import network_runs
from tests.conftest import ROOT
from tests.network_runs import DATA

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install -r requirements/export.txt)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install -r requirements/export.txt)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install -r requirements/export.txt)")


@pytest.fixture(scope="module", params=[network_runs.VERSION, "native"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in run/ and its model in net.onnx."""
    folder = tmp_path_factory.mktemp("exported")
    network_runs.write(folder / "run", request.param, images=50)
    export(folder / "run", folder / "net.onnx")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run in run/ and no data set."""
    monkeypatch.chdir(tmp_path)
    network_runs.write(tmp_path / "run", images=50)
    return tmp_path


def test_the_model_takes_bytes_in_any_number_and_gives_the_runs_classes(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "net.onnx")
    network = Network(network_runs.outputs.read_model(exported / "run"), "cpu")
    for count in (1, 7, 300):
        logits, probabilities = session.run(None, {"images": DATA.test_images[:count]})
        ours = network(DATA.test_images[:count])
        assert logits.shape == (count, 10)
        np.testing.assert_allclose(logits, ours.logits, atol=1e-3)
        np.testing.assert_allclose(probabilities, ours.confidences, atol=1e-3)
        assert (logits.argmax(1) == ours.logits.argmax(1)).all()


def test_its_metadata_names_the_classes_and_the_weights(exported: Path) -> None:
    onnx_model, model = onnx.load(exported / "net.onnx"), network_runs.outputs.read_model(exported / "run")
    facts = {entry.key: entry.value for entry in onnx_model.metadata_props}
    assert json.loads(facts["classes"]) == list(DATA.classes)
    assert facts["fingerprint"] == model.fingerprint
    assert (facts["data"], facts["numerics"], facts["seed"]) == ("synthetic", model.provenance.numerics, "3")
    assert "no promise of bits" in onnx_model.doc_string


def test_the_same_run_gives_the_same_file(exported: Path, tmp_path: Path) -> None:
    export(exported / "run", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (exported / "net.onnx").read_bytes()


def test_the_model_goes_into_what_the_user_names_through_a_link(folder: Path) -> None:
    Path("net.onnx").symlink_to("published.onnx")
    export(Path("run"), Path("net.onnx"))
    assert (Path("net.onnx").is_symlink(), Path("published.onnx").is_symlink()) == (True, False)
    onnx.checker.check_model("published.onnx")


def test_it_is_checked_on_the_test_images_where_they_are_there_and_else_on_drawn_ones(folder: Path) -> None:
    assert "on 1,000 drawn images (data/dataset.safetensors does not hold the run's data set)" in export(Path("run"), Path("net.onnx"))[1]
    DATA.save()
    assert "on 2,000 test images of synthetic: logits at most " in export(Path("run"), Path("net.onnx"))[1]
    assert dataset.load().digest == DATA.digest


@pytest.mark.parametrize("wrong", ["fc3.bias", "conv1.weight"])
def test_a_model_that_computes_something_else_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    right = written.serialised

    def changed(model, network):
        network = copy.deepcopy(network)
        with torch.no_grad():
            network.get_parameter(wrong).mul_(1.01)
        return right(model, network)

    monkeypatch.setattr(written, "serialised", changed)
    with pytest.raises(UserError, match="nothing is written"):
        export(Path("run"), Path("net.onnx"))
    assert not Path("net.onnx").exists()


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "networks/my_net.py:Net"])
def test_any_network_is_exported_with_its_own_size_and_classes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "networks", "networks", ignore=shutil.ignore_patterns("__pycache__"))
    data = synthetic.make(train=7, test=14, size=40, classes=7)
    network_runs.write(Path("run"), "native", data, scale=1.0, network=params.Model(name=name))
    data.save()
    assert "on 14 test images of synthetic-3x40x40-7: logits at most " in export(Path("run"), Path("net.onnx"))[1]
    ours = Network(network_runs.outputs.read_model(Path("run")), "cpu")(data.test_images[:5])
    logits, probabilities = onnxruntime.InferenceSession("net.onnx").run(None, {"images": data.test_images[:5]})
    np.testing.assert_allclose(logits, ours.logits, atol=1e-4 * abs(ours.logits).max())
    assert probabilities.shape == (5, 7)


def test_the_file_says_nothing_of_the_machine_that_wrote_it(exported: Path) -> None:
    content = (exported / "net.onnx").read_bytes()
    assert [each for each in (b"/site-packages/", b".py", str(ROOT).encode()) if each in content] == []


def test_an_operation_that_torch_onnx_cannot_translate_is_one_line_with_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "heads", lambda logits: [torch.special.airy_ai(logits)])
    with pytest.raises(UserError, match=r"^torch\.onnx cannot export the network simple_cnn: .*airy_ai"):
        export(Path("run"), Path("net.onnx"))
    assert not Path("net.onnx").exists()


@pytest.mark.parametrize("where", ["serialised", "_check"])
def test_whatever_the_packages_say_of_a_network_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fail(*given: object) -> None:
        raise RecursionError("maximum recursion\ndepth exceeded")

    monkeypatch.setattr(written, where, fail)
    with pytest.raises(
        UserError, match=r"^the ONNX model of the network simple_cnn cannot be made or run: maximum recursion depth exceeded; "
    ):
        export(Path("run"), Path("net.onnx"))
    assert not Path("net.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line_that_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as refused:
        export(Path("run"), Path("net.onnx"))
    assert str(refused.value) == (f"export to ONNX needs the package '{package}': pip install --require-hashes -r requirements/export.txt")
    assert not Path("net.onnx").exists()


def test_a_folder_that_cannot_be_written_is_one_line(folder: Path) -> None:
    Path("file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        export(Path("run"), Path("file/net.onnx"))


def test_another_ending_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--to net\.pt: the name must end in \.onnx or \.html"):
        export(Path("run"), Path("net.pt"))

"""A run whose network is not here: its predictions, its evaluation, its reproduction and its export, from network.json alone."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from pipeline import evaluation, models
from pipeline.data import dataset
from pipeline.params import Model
from pipeline.runs import kept, outputs
from pipeline.system import files
from pipeline.system.errors import UserError
from pipeline.weights import export, predict, reproduce
from pipeline.workers import ALONE, session
from pipeline.workers.rank import Worker
from tests import network_runs
from tests.conftest import ROOT
from tests.networks import OWN_FILE
from tests.reproductions import claim, hand_over, said, small_set, stopped_at
from tests.settings import set_params

NETWORKS = {
    "ResNet-20": {"name": "networks/resnet20.py:ResNet20", "arguments": {"width": 4}},
    "MobileNet": {"name": "mobilenet_v2", "arguments": {"width_mult": 0.25}},
    "one's own": {"name": "networks/my_net.py:Net", "arguments": {"width": 8}},
}


@pytest.fixture(scope="module", params=NETWORKS)
def received(request, tmp_path_factory) -> tuple[Path, Path]:
    """An author's project with a network, and a folder that holds a run of it and its data set, nothing else."""
    author, receiver = tmp_path_factory.mktemp("author"), tmp_path_factory.mktemp("receiver")
    hand_over(author, receiver, NETWORKS[request.param])
    return author, receiver


def test_its_evaluation_and_reproduction_are_identical(received, monkeypatch, capsys):
    monkeypatch.chdir(received[1])
    assert evaluation.evaluate_kept(Path("theirs"), "cpu", 7)
    assert reproduce.reproduce(Path("theirs"))
    assert said(capsys).startswith("identical: all 4 logged losses, ")
    (again,) = Path(".cache/reproduce/theirs/runs").iterdir()
    for part in (outputs.MODEL, outputs.NETWORK, outputs.HISTORY, outputs.METRICS, outputs.PREDICTIONS):
        if part == outputs.MODEL:  # it names the sources that trained
            assert outputs.read_model(again).fingerprint == outputs.read_model(Path("theirs")).fingerprint
        else:
            assert (again / part).read_bytes() == (Path("theirs") / part).read_bytes()


def test_its_predictions_of_the_test_images_are_the_runs(received, monkeypatch):
    monkeypatch.chdir(received[1])
    data, wanted = dataset.load(), kept.load(Path("theirs")).predictions
    for number in (0, 17):
        Image.fromarray(np.moveaxis(data.test_images[number], 0, 2)).save(f"{number}.png")
    answers: list[predict.Answer] = []
    assert predict.predict(Path("theirs"), ["0.png", "17.png"], "cpu", lambda network, given: answers.extend(given)) == (2, 0)
    for number, answer in zip((0, 17), answers, strict=True):
        predicted, confidence = answer.best[0]
        assert (predicted, np.float32(confidence)) == (wanted[number].predicted, np.float32(wanted[number].confidence))


def test_its_export_to_onnx_gives_its_classes(received, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(received[1])
    assert export.export(Path("theirs"), Path("net.onnx"))[0].startswith("wrote net.onnx: bytes [N, 3, 32, 32]")


def test_its_page_computes_what_it_says(received, monkeypatch):
    monkeypatch.chdir(received[1])
    assert export.export(Path("theirs"), Path("net.html")) == ["wrote net.html: it computes with exact-3, bit for bit as `predict` does"]


def test_another_network_of_that_name_here_is_said_and_not_used(received, monkeypatch, capsys, tmp_path):
    author, receiver = received
    name = kept.load(receiver / "theirs").identity.provenance.network.name
    if ".py:" not in name:
        pytest.skip("of torchvision's there is one")
    shutil.copytree(receiver, tmp_path, dirs_exist_ok=True)
    shutil.copytree(author / "networks", tmp_path / "networks")
    monkeypatch.chdir(tmp_path)
    file = Path(name.partition(":")[0])
    changed = file.read_text().replace("F.relu(", "F.silu(")
    assert changed != file.read_text()
    file.write_text(changed)
    assert reproduce.reproduce(Path("theirs"), epochs=1)
    assert f"the network is the one that network.json of the run says; {name} here is another network" in capsys.readouterr().out


@pytest.fixture
def of_own(received, monkeypatch, tmp_path) -> tuple[Path, Path, Model]:
    """The author's and the receiver's folder and a network that is a file's; the current folder has the data set alone."""
    author, receiver = received
    model = outputs.read_model(receiver / "theirs").provenance.network
    if not model.is_own:
        pytest.skip("of torchvision's there is one")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(receiver / "data", "data")
    return author, receiver, model


def test_a_network_of_that_name_here_that_the_run_says_is_larger_takes_no_memory(of_own, monkeypatch, capsys, tmp_path):
    author, receiver, model = of_own
    shutil.copytree(author / "networks", "networks")
    wide = structs.replace(model, arguments={"width": 10_000})  # its weights would take more than a hundred gibibytes
    run = claim(receiver / "theirs", tmp_path / "wide", network=lambda its: its, provenance=lambda p: structs.replace(p, model=wide))
    made, build = [], models.build
    monkeypatch.setattr(models, "build", lambda *given: made.append(build(*given)) or made[-1])
    assert reproduce.reproduce(run, epochs=1)
    assert f"network.json of the run says; {model.name} cannot be made here, so that it is that network was not" in capsys.readouterr().out
    assert {tensor.device.type for network in made for tensor in network.state_dict().values()} <= {"meta"}


def test_a_network_of_that_name_is_not_made_here_with_texts_that_a_run_gives_it(of_own, monkeypatch, capsys, tmp_path):
    _, receiver, model = of_own
    files.write_text(Path("networks", "mine.py"), "class Net:\n    def __init__(self, classes=10, file=None):\n        open(file, 'w')\n")
    reads = structs.replace(model, name="networks/mine.py:Net", arguments={"file": "written"})
    run = claim(receiver / "theirs", tmp_path / "reads", network=lambda its: its, provenance=lambda p: structs.replace(p, model=reads))
    assert reproduce.reproduce(run, epochs=1)
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith(f"{run}: networks/mine.py:Net(file=written), drawn, seed 0, exact-3, epochs 2")
    assert "networks/mine.py:Net was not made here, for what it would do with texts in its arguments is not known" in said
    assert not Path("written").exists()


TOOLS = """
from pathlib import Path
from torch import nn

def clean(classes=10, folder="."):
    Path(str(folder), "cleaned").touch()

class Cleaner:
    def __init__(self, classes=10):
        clean()

class Logger(nn.Module):
    def __init__(self, classes=10, path="log", depth=1):
        super().__init__()
        Path(path).touch()
"""
"""What a user may have beside his networks."""


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("clean", {}, "no such class stands in that file, and what it would do is not known"),
        ("Cleaner", {}, "it is no class of torch.nn.Module, and what it would do is not known"),
        ("Logger", {"path": "written"}, "what it would do with texts in its arguments is not known"),
        ("Logger", {"depth": 10_001}, "a number above 10000 in its arguments may ask for any memory and time"),
        ("Logger", {"depth": -1e9}, "a number above 10000 in its arguments may ask for any memory and time"),
    ],
)
def test_nothing_of_ones_own_networks_is_called_for_a_run_but_networks_without_texts(name, arguments, why, of_own, tmp_path):
    _, receiver, model = of_own
    files.write_text(Path("networks", "tools.py"), TOOLS)
    called = structs.replace(model, name=f"networks/tools.py:{name}", arguments=arguments)
    run = claim(receiver / "theirs", tmp_path / "calls", provenance=lambda p: structs.replace(p, model=called))
    before = sorted(Path().rglob("*"))
    for command in (
        lambda: reproduce.reproduce(run),
        lambda: evaluation.evaluate_kept(run, "cpu", 7),
        lambda: predict.predict(run, [], "cpu", lambda network, given: io.StringIO()),
        lambda: export.export(run, Path("net.onnx")),
    ):
        with pytest.raises(UserError) as refused:
            command()
        assert str(refused.value) == (
            f"model.name 'networks/tools.py:{name}' of the run was not made here, for {why}; if you trust the run, put its model section "
            "into params.yaml"
        )
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts] == before
    shutil.copy(ROOT / "params.yaml", ".")
    set_params(Path(), model={"name": called.name, "arguments": arguments} if arguments else {"name": called.name})
    with pytest.raises(UserError):
        evaluation.evaluate_kept(run, "cpu", 7)
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts] != [*before, Path("params.yaml")]


def test_a_network_that_takes_two_images_and_no_three_is_one_line(received, monkeypatch, tmp_path):
    if not outputs.read_model(received[1] / "theirs").provenance.network.is_own:
        pytest.skip("of torchvision's network.json decides nothing")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(received[1] / "data", "data")

    def of_two(content: bytes) -> bytes:
        found = json.loads(content)
        graph = found["training"]
        graph["calls"].append(["torch.Tensor.reshape", [graph["gives"], [2, 10]], {}])
        graph["gives"] = {"value": len(graph["calls"])}
        return json.dumps(found).encode()

    with pytest.raises(UserError, match="not a network that can be computed: shape ") as error:
        reproduce.reproduce(claim(received[1] / "theirs", tmp_path / "forged", network=of_two))
    assert "\n" not in str(error.value)


def test_weights_that_begin_with_what_network_json_gives_are_said(received, monkeypatch, capsys, tmp_path):
    receiver = received[1]
    if not outputs.read_model(receiver / "theirs").provenance.network.is_own:
        pytest.skip("of torchvision's network.json decides nothing")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(receiver / "data", "data")
    trained = outputs.read_weights(receiver / "theirs")

    def smuggled(content: bytes) -> bytes:  # what was trained elsewhere, on the test images perhaps, as if it were drawn
        found = json.loads(content)
        bias = next(name for name in found["held"] if name.endswith(("fc.bias", "head.bias")))
        found["held"][bias]["initial"] = [["values", trained[bias].tolist()]]
        return json.dumps(found).encode()

    reproduce.reproduce(claim(receiver / "theirs", tmp_path / "forged", network=smuggled), epochs=1)
    assert "the network is the one that network.json of the run says; " in (out := capsys.readouterr().out)
    assert "; 10 of its numbers begin as given there; it and its settings are described in " in out


def test_a_run_takes_no_state_and_no_worker_of_a_run_of_its_name_and_training_with_another_network_json(
    received, monkeypatch, capsys, tmp_path
):
    """A forger sends the run whose history he wants, and after it one that claims another network: neither trains any of the other."""
    if not outputs.read_model(received[1] / "theirs").provenance.network.is_own:
        pytest.skip("of torchvision's network.json decides nothing")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(received[1], tmp_path, dirs_exist_ok=True)
    Path("sent").mkdir()
    another = claim(
        Path("theirs"), Path("sent", "theirs"), network=lambda its: its.replace(b"torch.nn.functional.relu", b"torch.nn.functional.silu")
    )
    stopped_at(7, another)
    told: list[Mapping[str, object]] = []

    @contextlib.contextmanager
    def alone(worker: Worker, folder: Path) -> Iterator[session.Join]:
        yield lambda device, described: told.append(described) or ALONE

    monkeypatch.setattr(session, "together", alone)
    assert reproduce.reproduce(Path("theirs"))
    assert "of another training (computed network): not used" in capsys.readouterr().err
    reproduce.reproduce(another)
    assert [name for name in told[0] if told[0][name] != told[1][name]] == ["computed network"]


@pytest.mark.fault(78)
@pytest.mark.parametrize("change", ["edited", "lost", "another's"])
def test_a_network_that_is_not_the_runs_is_one_line(change, received, monkeypatch, tmp_path):
    shutil.copytree(received[1], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = Path("theirs") / outputs.NETWORK
    if change == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"batch_norm", b"layer_norm") if change == "edited" else b"{}")
    own = outputs.read_model(received[1] / "theirs").provenance.network.is_own  # what its name makes is predicted with all the same
    for lacks, command in (
        (True, lambda: reproduce.reproduce(Path("theirs"))),
        (True, lambda: evaluation.evaluate_kept(Path("theirs"), "cpu", 7)),
        (own, lambda: predict.predict(Path("theirs"), [], "cpu", lambda network, given: io.StringIO())),
        *([(own, lambda: export.export(Path("theirs"), Path("net.onnx")))] if find_spec("onnxruntime") else []),
    ):
        if change == "lost" and not lacks:
            command()
            continue
        with pytest.raises(
            UserError, match=r"theirs/network\.json: (not found|not the network of model\.safetensors: changed|changed after)"
        ):
            command()


@pytest.mark.fault(78)
def test_a_native_run_of_operations_without_exact_forms_is_predicted_evaluated_and_exported_by_its_source(monkeypatch, tmp_path):
    """Nothing can be recorded of it, so the page, which computes what is recorded, names the operation."""
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    files.write_text(Path("networks", "mine.py"), OWN_FILE.replace("x.flatten(1)", "torch.atan(x.flatten(1).cumsum(1))"))
    data = small_set()
    data.save()
    network_runs.write(Path("theirs"), "native", data, network=Model(name="networks/mine.py:Net"), recorded=True)
    answers: list[predict.Answer] = []
    Image.fromarray(np.moveaxis(data.test_images[3], 0, 2)).save("3.png")
    assert predict.predict(Path("theirs"), ["3.png"], "cpu", lambda network, given: answers.extend(given)) == (1, 0)
    wanted = outputs.read_predictions(Path("theirs"))[3]
    ((predicted, confidence), *_) = answers[0].best
    assert predicted == wanted.predicted
    np.testing.assert_allclose(confidence, wanted.confidence, rtol=1e-5)
    assert export.export(Path("theirs"), Path("net.onnx"))[0].startswith("wrote net.onnx: bytes [N, 3, 32, 32]")
    logits, _ = onnxruntime.InferenceSession("net.onnx").run(None, {"images": data.test_images[:5]})
    ours = predict.Network(outputs.read_model(Path("theirs")), "cpu")(data.test_images[:5]).logits
    np.testing.assert_allclose(logits, ours, rtol=1e-3, atol=1e-4 * np.abs(ours).max())
    with pytest.raises(UserError, match=r"(atan|cumsum)") as refused:
        export.export(Path("theirs"), Path("net.html"))
    assert "\n" not in str(refused.value)
    assert not Path("net.html").exists()
    Path("networks", "mine.py").unlink()
    for command in (lambda: predict.predict(Path("theirs"), ["3.png"], "cpu", lambda network, given: None),
                    lambda: export.export(Path("theirs"), Path("net.onnx"))):  # fmt: skip
        with pytest.raises(UserError, match=r"networks/mine\.py") as refused:
            command()
        assert "\n" not in str(refused.value)


def test_the_source_here_of_a_network_that_normalizes_by_the_training_images_is_the_runs(monkeypatch, capsys, tmp_path):
    author, receiver = tmp_path / "author", tmp_path / "receiver"
    author.mkdir(), receiver.mkdir()
    hand_over(author, receiver, {"name": "networks/my_net.py:Net", "arguments": {"width": 4}, "normalize": True})
    shutil.copytree(author / "networks", receiver / "networks")
    monkeypatch.chdir(receiver)
    capsys.readouterr()
    assert reproduce.reproduce(Path("theirs"), epochs=1)
    assert "the network is the one that network.json of the run says; 6 of its numbers begin as given there; " in capsys.readouterr().out

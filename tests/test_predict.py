"""`predict`: images in, classes and confidences out, as evaluation gives them, whatever else is among the images."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from pipeline import cli, evaluation
from pipeline.data import pictures
from pipeline.runs import outputs
from pipeline.weights import predict
from tests import network_runs
from tests.conftest import ROOT
from tests.network_runs import DATA


def save(image: np.ndarray, path: str | Path) -> None:
    """A uint8 image [3, 32, 32] as a PNG."""
    Path(path).write_bytes(pictures.png(image))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and all test images of its data set as images/00000.png and so on; there is no params.yaml and no data/."""
    folder = tmp_path_factory.mktemp("predict")
    network_runs.write(folder / "run")
    (folder / "images").mkdir()
    for index, image in enumerate(DATA.test_images):
        save(image, folder / "images" / f"{index:05}.png")
    return folder


class Done(NamedTuple):
    """What a command gave."""

    returncode: int
    stdout: bytes
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Runs `python -m pipeline predict ...` in a folder, in this process: a new one would load PyTorch each time."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments: str | Path, folder: Path, columns: int = 80) -> Done:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", str(columns))
        code = cli.answer(["predict", *map(str, arguments)])
        written = capsysbinary.readouterr()
        return Done(code, written.out, written.err.decode())

    return run


def rows(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode(errors="surrogateescape"), newline="")))


def recorded(folder: Path) -> list[tuple[str, str]]:
    """The class and the confidence of each row of predictions.csv, as they stand there."""
    return [(row["predicted"], row["confidence"]) for row in rows((folder / "run" / outputs.PREDICTIONS).read_bytes())]


def test_every_test_image_as_a_png_among_all_others_gives_its_row_of_the_predictions(command: Command, folder: Path) -> None:
    done = command("run", "images", "--csv", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    given = rows(done.stdout)
    assert [row["image"] for row in given] == [f"images/{index:05}.png" for index in range(len(DATA.test_images))]
    assert [(row["predicted"], row["confidence"]) for row in given] == recorded(folder)
    assert len(Counter(row["predicted"] for row in given)) > 2


def test_an_image_alone_gives_its_row(folder: Path) -> None:
    network = predict.Network(outputs.read_model(folder / "run"), "cpu")
    given = [next(predict.answers(network, [str(folder / "images" / f"{index:05}.png")], pytest.fail)) for index in range(0, 2000, 50)]
    assert [(answer.best[0][0], str(answer.best[0][1])) for answer in given] == recorded(folder)[::50]


def test_standard_input_is_an_image(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "predict", "run", "-", "--csv"], cwd=folder, input=(folder / "images/00007.png").read_bytes(),
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    (row,) = rows(done.stdout)
    assert (row["image"], row["predicted"], row["confidence"]) == ("-", *recorded(folder)[7])


@pytest.mark.parametrize("how", ["closed", "only for writing", "does not wait"])
def test_standard_input_that_cannot_be_read_is_one_line_and_one_that_does_not_wait_is_waited_for(how, folder):
    waits = how != "does not wait"
    read, write = os.pipe()
    os.set_blocking(read, False)
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", "predict", "run", "-"], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=write if how == "only for writing" else read, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=(lambda: os.close(0)) if how == "closed" else None,
    ) as process:  # fmt: skip
        os.close(read)
        if not waits:
            assert process.stdout.readline().startswith("image"), "the run was read, and now the picture is"
            time.sleep(0.5)
            os.write(write, (folder / "images/00007.png").read_bytes())
        os.close(write)
        out, said = process.communicate()
    if waits:
        assert (process.returncode, said.count("\n")) == (2, 1), said
        assert said.startswith("error: standard input: ")
    else:
        assert (process.returncode, said) == (0, "")
        assert out.split()[:2] == ["-", recorded(folder)[7][0]]


def test_the_best_three_are_the_three_largest_and_add_up(folder: Path) -> None:
    network = predict.Network(outputs.read_model(folder / "run"), "cpu")
    scores = network(DATA.test_images[:300])
    names = [str(folder / "images" / f"{index:05}.png") for index in range(300)]
    for answer, confidences in zip(predict.answers(network, names, pytest.fail), scores.confidences, strict=True):
        assert [value for _, value in answer.best] == sorted(confidences, reverse=True)[:3]
        assert [confidences[network.classes.index(name)] for name, _ in answer.best] == [value for _, value in answer.best]
        assert confidences.sum() == pytest.approx(1)


def test_of_equal_logits_the_first_class_comes_first(tmp_path: Path) -> None:
    network_runs.write(tmp_path, scale=0.0)
    network = predict.Network(outputs.read_model(tmp_path), "cpu")
    save(DATA.test_images[0], tmp_path / "x.png")
    (answer,) = predict.answers(network, [str(tmp_path / "x.png")], pytest.fail)
    assert answer.best == [(name, np.float32(0.1)) for name in DATA.classes[:3]]


def test_names_with_commas_newlines_and_bytes_that_are_no_text_come_back_whole(command: Command, folder: Path, tmp_path: Path) -> None:
    names = [b"a,b.png", b'a"b.png', b"a\nb.png", "a\N{SNOWMAN}.png".encode(), b"a\xffb.png"]
    for name in names:
        save(DATA.test_images[0], os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))

    def run(*form: str) -> bytes:
        return command(folder / "run", tmp_path, *form, folder=tmp_path).stdout

    expected = [os.path.join(os.fsencode(tmp_path), name) for name in sorted(names)]
    assert [os.fsencode(row["image"]) for row in rows(run("--csv"))] == expected
    assert [os.fsencode(image["image"]) for image in json.loads(run("--json"))["images"]] == expected
    table = run().decode()
    assert len(table.splitlines()) == 1 + len(names)
    assert "\N{REPLACEMENT CHARACTER}" in table


def test_no_cell_of_the_csv_is_a_formula_and_a_terminal_is_not_steered(folder: Path, capsysbinary: Any, monkeypatch: Any) -> None:
    classes = ["=1+1", "+49", "@x"]
    names = ["=cmd|'/c calc'!A0.png", "-2+3.png", "+x.png", "@x.png", "-", "-5", "plain.png", "a\x1b[31m.png"]
    given = [predict.Answer(name, [(name, np.float32(0.25)) for name in classes]) for name in names]
    predict.write_csv(predict.Network(outputs.read_model(folder / "run"), "cpu"), given)
    shown = rows(capsysbinary.readouterr().out)
    images = ["./=cmd|'/c calc'!A0.png", "./-2+3.png", "./+x.png", "./@x.png", "-", "-5", "plain.png", "a\x1b[31m.png"]
    assert [row["image"] for row in shown] == images
    assert {(row["predicted"], row["second"], row["third"]) for row in shown} == {("'=1+1", "+49", "'@x")}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    predict.write_csv(predict.Network(outputs.read_model(folder / "run"), "cpu"), given)
    assert b"\x1b" not in capsysbinary.readouterr().out


def test_json_says_whose_answers_they_are(command: Command, folder: Path) -> None:
    done = command("run", "images/00003.png", "--json", folder=folder)
    content = json.loads(done.stdout)
    model = outputs.read_model(folder / "run")
    assert (content["fingerprint"], content["numerics"]) == (model.fingerprint, network_runs.VERSION)
    (image,) = content["images"]
    assert image["image"] == "images/00003.png"
    assert [set(one) for one in image["best"]] == [{"class", "confidence"}] * 3
    assert (image["best"][0]["class"], str(image["best"][0]["confidence"])) == recorded(folder)[3]


def test_the_table_fits_80_columns_and_keeps_the_end_of_a_long_name(command: Command, folder: Path, tmp_path: Path) -> None:
    names = ["a/" * 60 + "end.png", "\N{CJK UNIFIED IDEOGRAPH-732B}" * 60 + ".png", "short.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(DATA.test_images[0], tmp_path / name)
    done = command(str(folder / "run"), *names, folder=tmp_path, columns=20)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0
    assert {cell_len(line) for line in lines[1:]} == {80}
    assert lines[0].split() == ["image", "prediction", "second", "third"]
    assert "…" in lines[1]
    assert lines[1].split()[0].endswith("a/end.png")
    assert lines[3].startswith("short.png ")
    predicted, confidence = recorded(folder)[0]
    assert lines[3].split()[1:3] == [predicted, f"{100 * float(confidence):.2f}"]


@pytest.mark.parametrize("classes", [["cat", "dog"], ["cat", "dog", "cow"]])
def test_of_two_classes_two_are_named_everywhere(classes: list[str], capsysbinary: pytest.CaptureFixture[bytes], monkeypatch) -> None:
    network: Any = SimpleNamespace(classes=classes, fingerprint="f", numerics=SimpleNamespace(version="exact"))
    answer = predict.Answer("a.png", [(name, np.float32(0.25)) for name in classes])
    printed = []
    for write in (predict.write_table, predict.write_csv, predict.write_json):
        write(network, [answer])
        printed.append(capsysbinary.readouterr().out.decode())
    assert [len(line.split()) for line in printed[0].splitlines()] == [1 + len(classes), 1 + 3 * len(classes)]
    assert [len(line.split(",")) for line in printed[1].splitlines()] == [1 + 2 * len(classes)] * 2
    assert [each["class"] for each in json.loads(printed[2])["images"][0]["best"]] == classes


def test_a_wider_terminal_gives_names_more_room(command: Command, folder: Path) -> None:
    done = command("run", "images/00000.png", folder=folder, columns=120)
    assert {len(line) for line in done.stdout.decode().splitlines()[1:]} == {120}


# --- what cannot be answered ---------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    """A folder with one good image and much else."""
    save(DATA.test_images[0], tmp_path / "good.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:500])
    Image.new("1", (8200, 8200)).save(tmp_path / "bomb.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image, and not named as one")
    return tmp_path


def test_what_cannot_be_answered_is_a_line_each_and_the_others_are_answered(command: Command, folder: Path, spoilt: Path) -> None:
    names = ["good.png", "text.png", "cut.png", "bomb.png", "pipe.png", "empty", "missing.png", "good.png"]
    done = command(str(folder / "run"), *names, "--csv", folder=spoilt)
    assert done.returncode == 3
    assert [row["image"] for row in rows(done.stdout)] == ["good.png", "good.png"]
    lines = done.stderr.splitlines()
    assert [line.split(":")[:2] for line in lines] == [["error", f" {name}"] for name in names[1:-1]]
    assert [line.split(": ", 2)[2].partition(" (")[0] for line in lines] == [
        "not an image that can be read",
        "damaged or truncated",
        "an image of more than 67,108,864 pixels; make it smaller",
        "not a plain file",
        "a folder without image files",
        "cannot be read: No such file or directory",
    ]


def test_a_folder_stands_for_its_image_files_alone(command: Command, folder: Path, spoilt: Path) -> None:
    (spoilt / "pipe.png").unlink()
    done = command(str(folder / "run"), ".", "--json", folder=spoilt)
    assert done.returncode == 3
    assert [image["image"] for image in json.loads(done.stdout)["images"]] == ["./good.png"]
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == [" ./bomb.png", " ./cut.png", " ./text.png"]


def test_nothing_answered_is_exit_code_2_and_still_json(command: Command, folder: Path, spoilt: Path) -> None:
    done = command(str(folder / "run"), "text.png", "--json", folder=spoilt)
    assert done.returncode == 2
    assert json.loads(done.stdout)["images"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "x.png"), "nowhere/model.safetensors: not found"),
        (("run", "x.png", "--device", "gpu"), "device 'gpu': not a device; allowed: cpu | cuda | cuda:N | mps"),
        (("run", "x.png", "--json", "--csv"), "--json and --csv together: choose one"),
        (("run",), "Missing argument 'IMAGE...'."),
    ],
)
def test_a_bad_command_line_is_one_line_and_exit_code_2(command: Command, arguments: tuple[str, ...], said: str, folder: Path) -> None:
    done = command(*arguments, folder=folder)
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_a_run_of_other_numerics_is_refused(command: Command, tmp_path: Path) -> None:
    network_runs.write(tmp_path, "exact-1" if network_runs.VERSION != "exact-1" else "exact-0")
    done = command(str(tmp_path), "x.png", folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "use the version that made the run" in done.stderr


def test_a_large_folder_takes_the_memory_of_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = pictures.read
    monkeypatch.setattr(pictures, "read", lambda file, name, *shape: opened.append(name) or read(file, name, *shape))
    network = predict.Network(outputs.read_model(folder / "run"), "cpu")
    stream = predict.answers(network, [str(folder / "images")], pytest.fail)
    next(stream)
    assert len(opened) == evaluation.BATCH


def test_a_reader_that_has_seen_enough_ends_it_without_a_traceback(folder: Path) -> None:
    done = subprocess.run(["bash", "-o", "pipefail", "-c", '"$0" -m pipeline predict run images --csv | head -1', sys.executable],
                          cwd=folder, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_loads_neither_torch_nor_pillow() -> None:
    script = (
        "import sys; from pipeline.cli import commands\n"
        "try: commands.app(['{0}', '--help'], standalone_mode=False)\n"
        "finally: assert not {{'torch', 'PIL', 'numpy'}} & set(sys.modules), sorted(sys.modules)"
    )
    for name in ("predict", "export"):
        done = subprocess.run([sys.executable, "-c", script.format(name)], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

"""`port`: each rule does what its examples say, and whole scripts that fail without a GPU train after it as when ported by hand."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.port.port import port, port_all
from pipeline.port.rules import RULES, Answer, Level
from pipeline.port.sources import Source
from pipeline.system.errors import UserError
from tests.conftest import ROOT

SCRIPTS = ROOT / "tests" / "port_scripts"
HEARD = (Level.BOUND, Level.NOTE)
HEAD = "import os\nimport torch\n\n"


def ported(text: str):
    return port(Source(Path("a.py"), text, "utf-8", True), set(Answer), {})


@pytest.mark.parametrize(("rule", "before", "after"), [(rule, *example) for rule in RULES for example in rule.examples])
def test_a_rule_does_what_its_example_says_and_nothing_more_the_second_time(rule, before, after):
    result = ported(f"{HEAD}{before}\n")
    if after is None or after == before:
        assert not result.changed
    else:
        assert after in result.text
    told = [f for f in result.findings if f.rule is rule and (after != before or f.found.level in HEARD)]
    assert bool(told) == (after != before)
    assert not ported(result.text).changed


CUDA = [(".cuda()", "")]
BY_HAND = {
    "airbench.py": [
        *CUDA,
        ("starter =", "import time; starter = time.time()  #"),
        ("ender =", "#"),
        ("starter.record()", ""),
        ("ender.record()", ""),
        ("torch.cuda.synchronize()", ""),
        ("assert 1e-3", "#"),
        ("print(torch.cuda.get_device_name(torch.cuda.current_device()))", ""),
    ],
    "alias_imports.py": [
        ('dev("cuda")\n', 'dev("cpu")\n'),
        ("gpu.set_device(0)", ""),
        ("             .cuda()\n", ""),
        ("current_device())", '"cpu")'),
        ("synchronize()\n", "\n"),
    ],
    "amp_scaler.py": [
        *CUDA,
        (".cuda(non_blocking=True)", ""),
        ("torch.cuda.synchronize()", ""),
        ("with autocast():", "if True:"),
        ("scaler.scale(loss)", "loss"),
        ("scaler.step(optimizer)", "optimizer.step()"),
        ("scaler.update()", ""),
    ],
    "config_dict.py": [('"cuda"', '"cpu"')],
    "distributed_nccl.py": [
        ('"nccl"', '"gloo"'),
        ("torch.cuda.set_device(local_rank)", ""),
        ('f"cuda:{local_rank}"', '"cpu"'),
        (", device_ids=[local_rank], output_device=local_rank", ""),
        ("labels.to(local_rank,", "labels.to(device,"),
    ],
    "finetune.py": [
        ("sys.exit(1)\ntorch.cuda.init()", ""),
        ('.to("cuda")', ""),
        ("map_location=lambda storage, loc: storage.cuda()", 'map_location="cpu"'),
        ("load_state_dict(state)", "load_state_dict({k[7:]: v for k, v in state.items()})"),
        ("batches.next()", "next(batches)"),
        *CUDA,
        (".cuda(images.get_device())", ""),
    ],
    "gan.py": [("cuda = True", "cuda = False")],
    "guarded_model.py": [("= data.cuda()", "= data"), ("= target.cuda()", "= target")],
    "imagenet_args.py": [
        ("torch.cuda.set_device(args.gpu)", ""),
        (".cuda(args.gpu)", ""),
        (".cuda(args.gpu, non_blocking=True)", ""),
    ],
    "prefetcher.py": [
        ("torch.cuda.Stream()", "None"),
        *CUDA,
        ("with torch.cuda.stream(self.stream):", "if True:"),
        (".cuda(non_blocking=True)", ""),
        ("torch.cuda.current_stream().wait_stream(self.stream)", ""),
        ("input.record_stream(torch.cuda.current_stream())", "pass"),
    ],
    "resnet_parallel.py": [*CUDA, ("torch.load(CHECKPOINT)", "torch.load(CHECKPOINT, map_location='cpu')")],
    "tensor_types.py": [
        ("torch.set_default_tensor_type('torch.cuda.FloatTensor')", ""),
        ("torch.cuda.", "torch."),
    ],
    "trainer_class.py": [
        ('torch.device("cuda:0")', 'torch.device("cpu")'),
        (", capturable=True", ""),
        ("torch.cuda.get_device_properties(0)\n", "None\n"),
        ("logger.info(f", "#"),
        (".pin_memory()", ""),
        ("torch.cuda.reset_peak_memory_stats()", ""),
        ('device="cuda:0"', 'device="cpu"'),
        ("torch.cuda.synchronize()", ""),
    ],
    "variable_2018.py": [
        *CUDA,
        (".cuda(async=True)", ""),
        ("[:k].view(-1)", "[:k].reshape(-1)"),
        ("loss.data[0]", "loss.item()"),
        (", volatile=True", ""),
    ],
    "with_helper/train.py": [(', device="cuda"', "")],
    "with_helper/utils.py": [("torch.cuda.set_device(gpu)", "pass"), *CUDA],
}
"""By hand, for a CPU alone: words of a script, and what stands for them."""


def losses(*folders: Path) -> list[dict[str, list[str] | str]]:
    """Of each folder: what each of its scripts prints about its losses, or the error that ends it."""
    names = [name for name in BY_HAND if not name.endswith("utils.py")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPTS / "runner.py", *(str(folder / name) for folder in folders for name in names)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    said = json.loads(done.stdout.splitlines()[-1])
    return [{name: said[str(folder / name)] for name in names} for folder in folders]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The scripts as they are, ported by hand, and ported by the command."""
    places = {kind: tmp_path_factory.mktemp("scripts") / kind for kind in ("as they are", "by hand", "ported")}
    for place in places.values():
        shutil.copytree(SCRIPTS, place, ignore=shutil.ignore_patterns("runner.py", "__pycache__"))
    for name, changes in BY_HAND.items():
        path = places["by hand"] / name
        text = path.read_text()
        for words, instead in changes:
            assert words in text, (name, words)
            text = text.replace(words, instead)
        path.write_text(text)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.answer(["port", "--write", "--json", str(places["ported"])]) == 3  # for what gives other numbers is left to the user
    (places["ported"].parent / "found.json").write_text(said.getvalue())
    return places


def test_each_script_fails_without_a_gpu_as_it_is_and_trains_after_port_with_the_losses_of_a_port_by_hand(folders):
    before, by_hand, after = losses(*folders.values())
    assert [name for name, said in before.items() if isinstance(said, list)] == []
    assert {name: len(said) for name, said in by_hand.items() if not isinstance(said, list) or len(said) < 2} == {}
    assert len(after) == 15
    assert after == by_hand


def test_comments_stay_with_every_line_that_is_not_found_and_a_second_port_changes_nothing(folders, capsys):
    scripts = json.loads((folders["ported"].parent / "found.json").read_text())["scripts"]
    found = {each["path"]: {finding["line"] for finding in each["findings"]} for each in scripts}
    for name in BY_HAND:
        before, after = ((folders[kind] / name).read_text() for kind in ("as they are", "ported"))
        for line in before.splitlines():
            assert "#" not in line or line[line.index("#") :] in after
        lines = iter(after.splitlines())
        for number, line in enumerate(before.splitlines(), 1):
            chained = line.strip().startswith(".")  # is found where its expression begins
            assert number in found[str(folders["ported"] / name)] or chained or line in lines
    capsys.readouterr()
    assert cli.answer(["port", "--diff", str(folders["ported"])]) == 3
    assert capsys.readouterr().out == ""


def test_asked_for_other_numbers_nothing_is_left_bound(folders, tmp_path, capsys):
    shutil.copytree(folders["ported"], tmp_path / "all")
    assert cli.answer(["port", "--write", "--numbers", str(tmp_path / "all")]) == 0
    capsys.readouterr()
    assert cli.answer(["port", str(tmp_path / "all")]) == 0
    assert capsys.readouterr().out == "nothing is bound to a device in 16 scripts\n"


def test_nothing_is_written_without_write_and_json_says_what_was_found(tmp_path, capsys):
    (tmp_path / "a.py").write_text(CUDA_SCRIPT)
    assert cli.answer(["port", "--json", str(tmp_path / "a.py")]) == 3
    said = json.loads(capsys.readouterr().out)
    found = said["scripts"][0]["findings"][0]
    assert (said["bound"], found["line"], found["class"], found["rule"]) == (1, 3, "same", "cuda-call")
    assert (tmp_path / "a.py").read_text() == CUDA_SCRIPT


def test_a_line_is_told_once_for_each_reason_and_counted_once(tmp_path, capsys):
    (tmp_path / "a.py").write_text("import torch\n\nx, y = x.cuda(), y.cuda().half()\n")
    assert cli.answer(["port", str(tmp_path / "a.py")]) == 3
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[2] for line in said if line.startswith(str(tmp_path))] == [" same", " other numbers"]
    assert said[-1] == "1 line is bound to a device in 1 script: 1 same, 1 other numbers"


def test_what_an_own_call_does_with_the_name_of_a_gpu_is_noted_and_not_counted(tmp_path, capsys):
    (tmp_path / "a.py").write_text('import torch\n\ntrainer = Trainer(device="cuda")\n')
    assert cli.answer(["port", str(tmp_path / "a.py")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tmp_path / 'a.py'}:3: same (note): names a GPU")
    assert said[-1] == "nothing is bound to a device in 1 script"


def test_a_named_script_is_followed_to_the_module_that_it_imports_which_asks_for_the_device_once(tmp_path, capsys):
    (tmp_path / "utils.py").write_text("import torch\n\n\ndef move(x):\n    return x.cuda()\n")
    (tmp_path / "main.py").write_text("import torch\nfrom utils import move\n\nx = move(torch.ones(1)) + torch.ones(1).cuda()\n")
    (tmp_path / "main.py").chmod(0o755)
    assert cli.answer(["port", "--write", str(tmp_path / "main.py")]) == 0
    assert "return x.to(device)" in (tmp_path / "utils.py").read_text()
    expected = "import torch\nfrom utils import move\n\nfrom utils import device\n\nx = move(torch.ones(1)) + torch.ones(1).to(device)\n"
    assert (tmp_path / "main.py").read_text() == expected
    assert (tmp_path / "main.py").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_encoding_and_the_line_ends_of_a_script_stay(newline, tmp_path):
    text = newline.join(["# -*- coding: latin-1 -*-", "import torch", "net = torch.nn.Linear(2, 2).cuda()  # pr\xeat", ""])
    (tmp_path / "a.py").write_bytes(text.encode("latin-1"))
    assert cli.answer(["port", "--write", str(tmp_path / "a.py")]) == 0
    after = (tmp_path / "a.py").read_bytes().decode("latin-1")
    assert after.endswith(f"net = torch.nn.Linear(2, 2).to(device)  # pr\xeat{newline}")
    assert after.count("\n") == after.count(newline)


CUDA_SCRIPT = "import torch\n\nx = torch.ones(1).cuda()\n"
BAD = {
    "no Python": lambda path: path.write_text("def f(:\n"),
    "Python 2": lambda path: path.write_text('import torch\nprint "cuda"\n'),
    "a binary": lambda path: path.write_bytes(b"\x7fELF\0\0torch"),
    "neither UTF-8 nor what it declares": lambda path: path.write_bytes(b"import torch\nx.cuda()  # pr\xeat\n"),
    "no such file": lambda path: None,
    "a folder without scripts": lambda path: path.mkdir(),
    "a loop of links": lambda path: path.symlink_to(path),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(kind, tmp_path, capsys):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(CUDA_SCRIPT)
    BAD[kind](bad)
    assert cli.answer(["port", "--write", str(good), str(bad)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert str(bad) in said.err
    assert good.read_text() == CUDA_SCRIPT


def test_a_notebook_is_one_line_that_says_how_it_becomes_a_script(tmp_path, capsys):
    (tmp_path / "a.ipynb").write_text('{"cells": []}')
    assert cli.answer(["port", str(tmp_path / "a.ipynb")]) == 2
    expected = f"error: {tmp_path / 'a.ipynb'}: a notebook; `jupyter nbconvert --to script a.ipynb` makes a script of it\n"
    assert capsys.readouterr() == ("", expected)


def test_where_one_script_may_not_be_written_none_is(tmp_path, capsys, monkeypatch):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(CUDA_SCRIPT)
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode == os.W_OK and str(path).endswith("b.py")))
    assert cli.answer(["port", "--write", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path / 'b.py'}: Permission denied")
    assert [(tmp_path / name).read_text() for name in ("a.py", "b.py")] == [CUDA_SCRIPT] * 2
    assert sorted(os.listdir(tmp_path)) == ["a.py", "b.py"]


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind not in ("no such file", "a folder without scripts")])
def test_a_file_of_a_folder_that_is_no_python_is_said_and_does_not_keep_the_others_from_being_ported(kind, tmp_path, capsys):
    (tmp_path / "good.py").write_text(CUDA_SCRIPT)
    BAD[kind](tmp_path / "old.py")
    (tmp_path / "around").symlink_to(tmp_path)
    (tmp_path / ".#good.py").symlink_to("nobody@nowhere")  # an editor's lock
    assert cli.answer(["port", "--write", str(tmp_path)]) == 3
    said = capsys.readouterr()
    assert said.err == ""
    assert [line.split(":")[2] for line in said.out.splitlines() if line.startswith(str(tmp_path / "old.py"))] == [" cannot"]
    assert ".to(device)" in (tmp_path / "good.py").read_text()


def test_nothing_is_bound_in_the_project_and_its_script_for_a_cpu(capsys):
    own = [
        path for path in (ROOT / "pipeline").rglob("*.py") if "torch.cuda" in path.read_text() and path.name != "cuda.py"
    ]  # only reached on a GPU, which no text of it says
    assert len(own) > 3
    assert cli.answer(["port", *map(str, own), str(ROOT / "tools" / "gpu.py"), str(ROOT / "docs" / "examples" / "train_cpu.py")]) == 0


def test_the_tutorials_script_for_a_gpu_asks_for_its_device_and_is_otherwise_the_one_for_a_cpu(tmp_path, capsys):
    shutil.copy(ROOT / "docs" / "examples" / "train_gpu.py", tmp_path / "train.py")
    assert cli.answer(["port", "--write", str(tmp_path / "train.py")]) == 0
    gone = [(', pin_memory=device.type == "cuda"', ""), (", non_blocking=True", ""), ("import os\n", "")]
    text = (tmp_path / "train.py").read_text()
    asked = 'torch.device(os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))'
    for words, instead in [*gone, (asked, 'torch.device("cpu")')]:
        assert words in text
        text = text.replace(words, instead)
    cpu = (ROOT / "docs" / "examples" / "train_cpu.py").read_text()
    assert text.split("\n", 1)[1] == cpu.split("\n", 1)[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# coding: rot13\nx = 1\n", r"no Python: 'rot13' is not a text encoding"),
        (b"# coding: undefined\nx = 1\n", "no Python: decoding with 'undefined' codec failed"),
        (b"# coding: unicode_escape\nx = '\\\\u0041'\n", "its encoding, unicode_escape, would not be written as it is"),
        (b"x = " + b"-" * 50_000 + b"1\n", "its expressions are nested too deeply to be read"),
    ],
    ids=["no text", "undefined", "not the same again", "too deep"],
)
def test_a_script_that_no_python_reads_is_one_line(content, said, tmp_path):
    (tmp_path / "script.py").write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        port_all([tmp_path / "script.py"])
    assert "\n" not in str(error.value)


def test_modules_that_import_each_other_in_a_row_without_end_are_one_line(tmp_path):
    for number in range(1200):
        (tmp_path / f"m{number}.py").write_text(f"import m{number + 1}\n")
    with pytest.raises(UserError, match=r"m0\.py: its modules import each other in too long a row to be followed"):
        port_all([tmp_path / "m0.py"])

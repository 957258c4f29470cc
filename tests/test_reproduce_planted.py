"""`reproduce`: what a forger leaves at the names where a reproduction will write decides nothing, and nothing is lost by it."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from msgspec import structs

from pipeline import evaluation, models, params
from pipeline.runs import keeping, kept, outputs
from pipeline.runs.environments import Facts
from pipeline.system import paths, private
from pipeline.system.errors import UserError
from pipeline.training import checkpoint, loop, stage
from pipeline.weights import reproduce
from tests.conftest import ROOT, command
from tests.reproductions import claim, content, said


def forged(original, here, folder="forged"):
    """A run whose history is the true one, with every weight 0.125 and every prediction right, and all its hashes made to fit."""
    return claim(
        original["exact"],
        here / folder,
        weights=lambda weights: {name: np.full_like(array, 0.125) for name, array in weights.items()},
        predictions=lambda rows: [structs.replace(p, predicted=p.actual) for p in rows],
    )


def names(run, here):
    """The names under which the true result of reproducing `run` is kept."""
    reproduce.reproduce(run)
    runs = reproduce.REPRODUCED / run.name / kept.RUNS
    (target,) = kept.listed(runs)
    digest = keeping._digest(kept.load(target))
    shutil.rmtree(runs)
    stem = target.name[:-8]
    return [runs / f"{stem}{digest[:digits]}" for digits in (8, 16, 64)]


@pytest.mark.parametrize("how", ["copied", "linked", "hard links"])
def test_a_twin_of_the_forgery_planted_where_the_true_result_will_be_kept_is_not_taken_for_it(how, original, here, capsys):
    run = forged(original, here)
    targets = names(run, here)
    for target in targets[:2]:
        if how == "linked":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(run)
        else:
            shutil.copytree(run, target, copy_function=os.link if how == "hard links" else shutil.copy2)
    before = content(run)
    capsys.readouterr()
    assert not reproduce.reproduce(run)
    assert said(capsys).startswith("different: all logged losses are equal, but the weights are not, first in conv1.bias: ")
    assert kept.load(targets[2]).identity.fingerprint == outputs.read_model(original["exact"]).fingerprint
    assert content(run) == before


def test_where_every_name_of_the_true_result_is_taken_by_another_it_is_an_error_and_never_the_verdict(original, here):
    run = forged(original, here)
    for target in names(run, here):
        shutil.copytree(run, target)
    with pytest.raises(UserError, match="is there, but is not the run of that name"):
        reproduce.reproduce(run)


def test_of_two_runs_whose_hashes_collide_in_the_eight_digits_of_the_name_each_is_kept_as_itself(original, here, monkeypatch):
    digest = keeping._digest
    monkeypatch.setattr(keeping, "_digest", lambda run: f"{'0' * 8}{digest(run)[8:]}")
    runs = [kept.load(original["exact"]), kept.load(forged(original, here))]
    for _ in range(2):
        places = [keeping.put(run, kept.read_parts(run.folder), here / kept.RUNS) for run in runs]
        assert [len(place.name.rpartition("-")[2]) for place in places] == [8, 16]
        assert [kept.load(place).sums for place in places] == [run.sums for run in runs]
    assert len(kept.listed(here / kept.RUNS)) == 2


def test_no_secret_is_read_or_made_in_the_current_folder(original, here, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "state" / "pipeline").mkdir(mode=0o700, parents=True)
    (here / "state" / "pipeline" / "secret").write_bytes(b"f" * 32)
    (here / "state" / "pipeline" / "secret").chmod(0o600)
    assert private.secret() != b"f" * 32
    assert private.secret() == (here / "home/.local/state/pipeline/secret").read_bytes()


def test_who_has_no_home_has_a_secret_for_each_process(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~nowhere")
    assert private.secret() != private.secret()


def test_what_stands_under_the_name_of_a_finished_run_is_held_to_its_sums(original, here):
    with_model = original["exact"].parent.parent
    shutil.copytree(with_model / outputs.OUTPUTS, outputs.OUTPUTS)
    first = keeping.keep(evaluated_in=Facts(threads=1))
    assert keeping.keep(evaluated_in=Facts(threads=1)) == first
    (first / outputs.HISTORY).write_text("step,epoch,loss\n1,1,0.5\n")
    other = keeping.keep(evaluated_in=Facts(threads=1))
    assert other != first
    assert kept.load(other).sums == kept.sums_of(kept.read_parts(outputs.OUTPUTS))


def test_a_checkpoint_that_a_forger_planted_is_not_resumed(original, here, capsys, monkeypatch):
    run = forged(original, here)
    train = loop.train

    def planted(trainer, mine=None, *arguments):  # as a forger's own copy of the pipeline writes the last state of a training
        theirs = checkpoint.Checkpoint(mine.folder, json.loads(mine.key))
        theirs.save(checkpoint.State(trainer.total_steps, outputs.read_history(run), trainer.state()))
        return train(trainer, mine, *arguments)

    monkeypatch.setattr(loop, "train", planted)
    assert not reproduce.reproduce(run)
    assert "its checksum is another" in (said := capsys.readouterr()).err
    assert "the weights are not, first in conv1.bias: " in said.out


def test_files_that_a_forger_planted_in_outputs_and_runs_are_neither_read_nor_changed(original, here):
    run = forged(original, here)
    for folder in (outputs.OUTPUTS, kept.RUNS / "a", reproduce.REPRODUCED / run.name / outputs.OUTPUTS):
        shutil.copytree(run, folder)
    before = {name: data for name, data in content(here).items() if "reproduce/" not in name}
    assert not reproduce.reproduce(run)
    assert {name: data for name, data in content(here).items() if "reproduce/" not in name} == before


@pytest.mark.parametrize("at", [".", "work", "work/.cache", "work/runs"])
def test_nothing_is_written_where_a_planted_link_leads(at, original, here):
    run = forged(original, here)
    (here / "elsewhere").mkdir()
    place = reproduce.REPRODUCED / at.replace("work", run.name)
    place.parent.mkdir(parents=True)
    place.symlink_to(here / "elsewhere")
    with pytest.raises(UserError, match=f"^{place}: is a link, and what is computed would be written where it leads; delete it$"):
        reproduce.reproduce(run)
    assert not list((here / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "name", ["networks/../x/n.py:N", "networks/a/../../x/n.py:N", "x/n.py:N", "./x/n.py:N", "/x/n.py:N", "networks.py:N"]
)
def test_no_name_of_a_network_leads_out_of_the_folder_of_networks(name):
    with pytest.raises(UserError, match="a file of your own belongs into networks/"):
        models.build(params.Model(name=name), (3, 8, 8), 10)


@pytest.mark.parametrize("recorded", [False, True], ids=["", "with network.json"])
@pytest.mark.parametrize("words", [["reproduce"], ["evaluate", "--run"], ["predict"]], ids=lambda words: words[0])
def test_no_program_that_came_with_a_run_is_started_for_its_network(words, recorded, original, here):
    network = params.Model(name="networks/../forged/net.py:Net")
    run = claim(
        original["exact"], here / "forged", provenance=lambda p: structs.replace(p, model=network),
        network=lambda its: its if recorded else None,
    )  # fmt: skip
    (here / "networks").mkdir()
    (run / "net.py").write_text("open('started', 'w')\nfrom pipeline.models.simple_cnn import SimpleCNN as Net\n")
    (here / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    images = ["x.png"] if words == ["predict"] else []
    done = command(*words, "forged", *images, folder=here)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "a file of your own belongs into networks/" in done.stderr
    assert not (here / "started").exists()


@pytest.mark.parametrize(
    "words", [["reproduce"], ["evaluate", "--run"], ["predict"], ["export", "--to", "x.onnx"]], ids=lambda words: words[0]
)
@pytest.mark.parametrize("at", [".", "networks"])
def test_whoever_is_in_the_folder_of_a_run_starts_nothing_that_came_with_it(words, at, original, here):
    run = claim(original["exact"], here / "forged", provenance=lambda p: structs.replace(p, model=params.Model(name="networks/n.py:N")))
    (run / "networks" / "networks").mkdir(parents=True)
    for folder in (run, run / "networks"):
        shutil.copytree(original["exact"].parent.parent / "data", folder / "data")
        (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        (folder / "networks" / "n.py").write_text(f"open({str(here / 'started')!r}, 'w')\n")
    images = ["x.png"] if words == ["predict"] else []
    done = command(*words, os.path.relpath(run, run / at), *images, folder=run / at)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "you are in it, and a networks/ that came with it would be taken for yours; go to a folder of yours" in done.stderr
    assert not (here / "started").exists()


@pytest.mark.parametrize("wanted", ["system", "Path", "nn", "absent", "load"])
def test_of_a_file_of_networks_a_run_can_name_networks_alone(wanted, here):
    (here / "networks").mkdir()
    (here / "networks" / "own.py").write_text("from os import system\nfrom pathlib import Path\nfrom torch import load, nn\n"
                                              "class Net(nn.Linear): pass\ndef made(): return nn.Linear(1, 1)\n")  # fmt: skip
    with pytest.raises(UserError, match=rf"own\.py has no {wanted}; it has Net$"):
        models.build(params.Model(name=f"networks/own.py:{wanted}", arguments={"command": "touch started"}), (3, 8, 8), 10)
    assert models.build(params.Model(name="networks/own.py:made"), (3, 8, 8), 10).in_features == 1
    assert not (here / "started").exists()


@pytest.mark.parametrize("argument", [{"weights": "DEFAULT"}, {"pretrained": True}, {"weights_backbone": "DEFAULT"}])
def test_no_run_names_weights_that_are_downloaded(argument):
    with pytest.raises(
        UserError, match=r"^model\.arguments has .*, which would load other weights; every network begins with those of its"
    ):
        models.build(params.Model(name="resnet18", arguments=argument), (3, 32, 32), 1000)


def test_a_data_set_that_is_mapped_and_changed_for_the_length_of_the_training_gets_no_verdict(original, here, monkeypatch):
    path, fit = here / "theirs.safetensors", stage.fit
    shutil.copy(here / "data" / "dataset.safetensors", path)
    true = path.read_bytes()
    monkeypatch.setattr(paths, "LARGEST_BYTES", len(true) - 1)

    def poisoned(*given, **named):
        with open(path, "r+b") as file:
            file.seek(len(true) // 2)
            file.write(bytes(1000))
        try:
            return fit(*given, **named)
        finally:
            with open(path, "r+b") as file:
                file.write(true)
            os.utime(path, (0, 0))

    monkeypatch.setattr(stage, "fit", poisoned)
    with pytest.raises(UserError, match=r"theirs\.safetensors: was changed while .* was computed again with it"):
        reproduce.reproduce(original["exact"], epochs=1, data_file=path)
    assert path.read_bytes() == true


def test_a_run_that_is_swapped_while_it_is_computed_again_gets_no_verdict(original, here, monkeypatch):
    run, other = claim(original["exact"], here / "run"), forged(original, here)

    def swapping(*arguments, evaluate=evaluation.evaluate, **named):
        shutil.rmtree(run)
        shutil.copytree(other, run)
        return evaluate(*arguments, **named)

    monkeypatch.setattr(evaluation, "evaluate", swapping)
    with pytest.raises(UserError, match="run: was changed while it was computed again"):
        reproduce.reproduce(run)


@pytest.mark.parametrize(
    ("name", "before", "after"), [("run.json", '"seed":0', '"seed":7'), ("environment.json", '"threads":', '"threads":1')]
)
def test_what_a_run_says_of_itself_may_not_change_either(name, before, after, original, here, monkeypatch):
    run = claim(original["exact"], here / "run")

    def changing(*arguments, evaluate=evaluation.evaluate, **named):
        text = "".join((run / name).read_text().split(" ")).replace(before, after, 1)
        assert after in text
        (run / name).write_text(text)
        return evaluate(*arguments, **named)

    monkeypatch.setattr(evaluation, "evaluate", changing)
    with pytest.raises(UserError, match="run: was changed while it was computed again"):
        reproduce.reproduce(run)

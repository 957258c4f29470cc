"""`reproduce`: the data set that a run needs, and what cannot be reproduced at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from msgspec import structs

from pipeline import reproduce
from pipeline.data import dataset, synthetic
from pipeline.runs import kept, outputs
from tests.conftest import command
from tests.reproductions import CLASSES, called, claim, refused, said, small_set, trained_with

# --- the data set ---------------------------------------------------------------------------------------------------


def test_a_data_set_elsewhere_is_named_with_data(original, here, capsys):
    dataset.DATASET.rename("moved.safetensors")
    assert reproduce.reproduce(original["exact"], data_file=Path("moved.safetensors"))
    assert said(capsys).startswith("identical: ")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("drawn", "set data.source: folder, with the folder that the run's author used, in params.yaml and run"),
        ("cifar10", "set data.source: cifar10 in params.yaml and run `python -m pipeline download`, or name its dataset.safetensors with"),
    ],
)
def test_without_the_data_set_the_user_is_told_where_to_get_it_or_how_to_name_it(name, remedy, original, here):
    run = claim(original["exact"], here / "copy", provenance=called(name))
    digest = small_set().digest[:12]
    dataset.DATASET.unlink()
    refused(f"copy needs the data set '{name}' ({digest}...), and data/dataset.safetensors is not there: {remedy}", run)
    refused("and nowhere is not there: ", run, data_file=Path("nowhere"))


def test_another_data_set_is_refused_with_both_digests(original, here):
    other = small_set(73)
    other.save()
    wanted = (
        f"needs the data set 'drawn' ({small_set().digest[:12]}...), but data/dataset.safetensors is 'drawn' ({other.digest[:12]}...): "
    )
    refused(wanted, original["exact"])
    other.save(Path("other"))
    small_set().save()
    refused(f"but other is 'drawn' ({other.digest[:12]}...): ", original["exact"], data_file=Path("other"))


def test_a_damaged_data_set_is_refused(original, here):
    dataset.DATASET.write_bytes(b"no safetensors")
    refused("data/dataset.safetensors: damaged (", original["exact"])


def test_other_class_names_are_refused(original, here):
    small_set(classes=("cat", *CLASSES[1:])).save()
    refused("with the same images and labels, 'cat, class1, ", original["exact"])


def test_the_name_of_a_data_set_does_not_matter(original, here, capsys):
    copy = claim(original["exact"], here / "copy", provenance=called("another-name"))
    assert reproduce.reproduce(copy)
    assert said(capsys).startswith("identical: ")


def test_the_synthetic_set_is_made_whatever_is_in_data(original, here, monkeypatch, capsys):
    monkeypatch.setattr(synthetic, "make", lambda: dataclasses.replace(small_set(), name="synthetic"))
    copy = claim(original["exact"], here / "copy", provenance=called("synthetic"))
    small_set(73).save()
    assert reproduce.reproduce(copy)
    monkeypatch.setattr(synthetic, "make", lambda: dataclasses.replace(small_set(73), name="synthetic"))
    refused("but this version's synthetic set is 'synthetic' (", copy)
    small_set().save(Path("theirs"))
    assert reproduce.reproduce(copy, data_file=Path("theirs"))


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_is_no_run_of_this_format_is_refused(original, here):
    refused("nowhere: not a folder", here / "nowhere")
    old = claim(original["exact"], here / "old", identity=lambda identity: identity | {"format": 1})
    refused("run.json: format 1; this version reads format 2", old)
    (old / outputs.METRICS).unlink()
    refused("run.json: format 1", old)


def test_a_damaged_run_is_refused(original, here):
    copy = claim(original["exact"], here / "copy")
    (copy / outputs.HISTORY).write_text((copy / outputs.HISTORY).read_text().replace("\n3,", "\n4,"))
    refused("history.csv: changed after the run, or of another run", copy)


@pytest.mark.parametrize(
    ("numerics", "message"),
    [
        ("exact-0", "numerics 'exact-0': this version of the pipeline has "),
        ("exact", "numerics 'exact' without a version"),
        ("fast", "numerics 'fast': "),
    ],
)
def test_another_version_of_the_numerics_is_refused(numerics, message, original, here):
    run = claim(original["exact"], here / "copy", provenance=lambda p: structs.replace(p, numerics=numerics))
    refused(message, run)


def test_a_batch_size_that_no_evaluation_can_have_is_refused(original, here):
    copy = claim(original["exact"], here / "copy")
    facts = json.loads((copy / kept.ENVIRONMENT).read_text())
    facts["evaluate"]["batch_size"] = 0
    (copy / kept.ENVIRONMENT).write_text(json.dumps(facts))
    refused("environment.json: 'evaluate.batch_size' is 0; allowed: ", copy)


@pytest.mark.parametrize("epochs", [-1, 0, 3])
def test_a_beginning_that_the_run_has_not_is_refused(epochs, original, here):
    refused(f"--epochs {epochs}: {original['exact']} has 2; name a number from 1 to 2", original["exact"], epochs=epochs)


def test_a_beginning_in_which_nothing_was_logged_is_refused(original, here):
    run = claim(original["exact"], here / "copy", provenance=trained_with(log_every=6))
    refused("logs every 6 steps, and these are 5: there is nothing to compare", run, epochs=1)


def test_a_beginning_of_a_native_run_is_refused(original, here):
    refused("a beginning cannot tell whether native runs are equivalent", original["native"], epochs=1)


def test_an_absent_device_is_refused(original, here):
    refused("device 'gpu': not a device", original["exact"], "gpu")


def test_a_folder_that_may_not_be_written_is_one_line_and_nothing_is_written(original, here, monkeypatch):
    def read_only(self, *_, **__):
        raise PermissionError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    refused("cannot write .cache: Read-only file system", original["exact"])


def test_a_mistake_is_one_line_and_exit_code_2(original, here):
    dataset.DATASET.unlink()
    done = command("reproduce", str(original["exact"]), folder=here)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(f"error: {original['exact']} needs the data set 'drawn' (")
    assert not (here / ".cache").exists()


def test_what_a_run_says_of_itself_cannot_steer_the_terminal(original, here, capsys):
    copy = claim(original["exact"], here / "copy", provenance=called("\x1b[2Jdrawn"))
    assert reproduce.reproduce(copy)
    assert "\x1b" not in capsys.readouterr().out

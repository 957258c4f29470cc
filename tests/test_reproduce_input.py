"""`reproduce`: the data set that a run needs, and what cannot be reproduced at all."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from pipeline import evaluation, models, params
from pipeline.data import dataset, synthetic
from pipeline.runs import kept, outputs
from pipeline.runs.provenance import Provenance
from pipeline.system import tensors
from pipeline.system.errors import UserError
from pipeline.training import stage
from pipeline.weights import predict, reproduce
from pipeline.workers import launch
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


@pytest.mark.parametrize("name", ["\x1b[2Jdrawn", "../drawn", "a/b", "/tmp/x", "..", ".hidden", "a\0b", "x" * 65, "", "a\u202eb"])
def test_a_name_that_params_yaml_would_refuse_is_refused_in_a_run_and_makes_no_file(name, original, here, capsys):
    refused("'data.name' is ", claim(original["exact"], here / "copy", provenance=called(name)))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("numerics", "../exact-2"),
        ("code", "c" * 63),
        ("code", "\x1b" * 64),
        ("workers", 0),
        ("workers", 1025),
        ("fingerprint", "F" * 64),
        ("device", "cuda:256"),
        ("device", "../cpu"),
        ("evaluation_code", "x"),
        ("revision", "a\nb"),
        ("files", {"model.safetensors": "x"}),
    ],
)
def test_every_field_of_a_run_has_bounds(field, value, original, here):
    refused(f"'{field}", claim(original["exact"], here / "copy", identity=lambda identity: identity | {field: value}))


@pytest.mark.parametrize("shape", [[3, 2**63, 32], [3, 32, 4097], [3, -1, 32], [0, 32, 32], [4, 32, 32], [3, 32], [3, 32, 32, 1]])
def test_a_shape_that_no_image_has_is_refused(shape, original, here):
    copy = claim(original["exact"], here / "copy", identity=lambda identity: identity | {"data": identity["data"] | {"shape": shape}})
    refused("run.json: 'data.shape", copy)


def shaped(shape):
    return lambda p: structs.replace(p, data=structs.replace(p.data, shape=shape))


def test_another_shape_than_that_of_the_images_is_refused(original, here):
    copy = claim(original["exact"], here / "copy", provenance=shaped((3, 64, 64)))
    message = "images of [3, 64, 64], but those with its digest are of [3, 32, 32]; changed by hand"
    refused(message, copy)
    with pytest.raises(UserError, match=re.escape(message)):
        evaluation.evaluate_kept(copy, "cpu", 16)


def test_a_network_that_a_run_says_is_larger_than_its_weights_takes_no_memory(original, here, monkeypatch):
    made = []
    build = models.build
    monkeypatch.setattr(models, "build", lambda *given: made.append(build(*given)) or made[-1])
    large = claim(original["exact"], here / "large", provenance=shaped((3, 4096, 4096)))  # its network would take eight gibibytes
    many = {"name": "resnet18", "arguments": {"num_classes": 10**8}}
    others = claim(original["exact"], here / "many", provenance=lambda p: structs.replace(p, model=params.section(params.Model, many, "")))
    for run in (large, others):
        with pytest.raises(UserError, match="the weights are not "):
            predict.predict(run, [], "cpu", lambda network, given: None)
    with pytest.raises(UserError, match=r"the weights are not resnet18's: making the network that the run says takes a tensor of 512"):
        reproduce.reproduce(others)
    assert {tensor.device.type for network in made for tensor in network.state_dict().values()} <= {"meta"}


def test_arguments_that_simple_cnn_has_not_are_one_line(original, here):
    model = params.section(params.Model, {"arguments": {"path": "../x"}}, "")
    copy = claim(original["exact"], here / "copy", provenance=lambda p: structs.replace(p, model=model))
    with pytest.raises(UserError, match=r"model\.name simple_cnn: TypeError: .*unexpected keyword argument 'path'; mend the network, its"):
        reproduce.reproduce(copy)


@pytest.mark.parametrize("link", ["a hard link", "a link"])
@pytest.mark.parametrize("part", [*outputs.PARTS, kept.IDENTITY, kept.ENVIRONMENT])
def test_a_part_that_is_a_link_is_the_bytes_that_it_leads_to_and_nothing_is_written_there(part, link, original, here, monkeypatch, capsys):
    run, other = claim(original["exact"], here / "run"), here / "other"
    shutil.move(run / part, other)
    (os.link if link == "a hard link" else os.symlink)(other, run / part)
    before = other.read_bytes()
    assert reproduce.reproduce(run, epochs=1)
    assert (said(capsys)[:10], other.read_bytes()) == ("identical:", before)

    def changing(*arguments, fit=stage.fit):  # under its other name, while the run is computed again
        other.write_bytes(before.replace(b"1", b"2"))
        return fit(*arguments)

    monkeypatch.setattr(stage, "fit", changing)
    with pytest.raises(UserError, match="was changed while it was computed again"):
        reproduce.reproduce(run, epochs=1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": "0" * 64}, "which 'model.weights' names: both, or none"),
        ({"model": {"weights": "networks/start.pth"}}, "which 'model.weights' names: both, or none"),
        ({"imported": {"checkpoint": "0" * 64}}, "either of a training here ('train') or of elsewhere ('imported')"),
        ({"train": None}, "either of a training here ('train') or of elsewhere ('imported')"),
    ],
)
def test_what_a_run_says_of_where_its_weights_began_does_not_contradict_itself(changed, said, original, here):
    refused(said, claim(original["exact"], here / "copy", identity=lambda its: its | changed))
    its = msgspec.to_builtins(outputs.read_model(original["exact"]).provenance)
    with pytest.raises(msgspec.ValidationError, match=re.escape(said)):  # as it stands beside the weights
        msgspec.convert(its | changed, Provenance)


def test_a_setting_of_a_run_is_shown_short_however_long_it_is(original, here, capsys):
    schedule = params.Schedule(name="steps", milestones=tuple(range(1, 100_000)))
    copy = claim(original["exact"], here / "copy", provenance=trained_with(epochs=100_000, schedule=schedule))
    reproduce.reproduce(copy, epochs=1)
    assert max(map(len, capsys.readouterr().out.splitlines())) < 500


def test_more_class_names_than_exact_numerics_can_add_are_refused(original, here):
    many = tuple(f"class{i}" for i in range(8193))
    copy = claim(original["exact"], here / "copy", provenance=lambda p: structs.replace(p, data=structs.replace(p.data, classes=many)))
    refused("'data.classes' is ", copy)


def test_an_exact_run_starts_no_workers_whatever_it_says(original, here, monkeypatch):
    monkeypatch.setattr(launch, "_start", None)  # whoever starts a worker fails
    refused("'workers' is 1024", claim(original["exact"], here / "copy", provenance=lambda p: structs.replace(p, workers=1024)))
    facts = json.loads((original["exact"] / kept.ENVIRONMENT).read_text())
    copy = claim(original["exact"], here / "told")
    facts["train"]["workers"] = 1024
    (copy / kept.ENVIRONMENT).write_text(json.dumps(facts))
    assert reproduce.reproduce(copy)


def test_a_native_run_of_more_workers_than_processors_is_refused_unless_their_number_is_given(original, here):
    refused("add --workers 1024 ", claim(original["native"], here / "copy", provenance=lambda p: structs.replace(p, workers=1024)))


@pytest.mark.parametrize("document", ["run.json", "environment.json", "metrics.json"])
def test_a_key_that_is_given_twice_is_refused(document, original, here):
    copy = claim(original["exact"], here / "copy")
    text = (copy / document).read_text()
    key = next(iter(json.loads(text)))
    (copy / document).write_text(text.replace("{", f'{{"{key}": null, ', 1))
    refused(f"{document}: damaged: not JSON (the key '{key}' is given twice)", copy)


@pytest.mark.parametrize("document", ["run.json", "environment.json", "metrics.json"])
def test_a_document_of_more_than_a_mebibyte_is_refused_by_its_size(document, original, here):
    copy = claim(original["exact"], here / "copy")
    with (copy / document).open("r+b") as file:
        file.truncate(2**29)  # half a gibibyte that takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"/{document}: 536870912 bytes; at most 1048576 are read$"):
            kept.load(copy)
        assert tracemalloc.get_traced_memory()[1] < 2**26, "nothing of it was read"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", [outputs.HISTORY, outputs.PREDICTIONS])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("\n", "\r\n"), "it is written otherwise than the pipeline writes"),
        (lambda text: text.replace("\n3,", '\n"3",'), "it is written otherwise than the pipeline writes"),
        (lambda text: text.removesuffix("\n"), "it is written otherwise than the pipeline writes"),
        (lambda text: text.replace("\n3,", "\n03,"), "'03' where a whole number of at most 15 digits must be"),
    ],
    ids=["another end of a line", "quotation marks", "no end", "a zero before a number"],
)
def test_a_table_has_one_way_to_be_written_for_another_program_could_read_other_numbers(part, change, said, original, here):
    copy = claim(original["exact"], here / "copy")
    (copy / part).write_bytes(change((copy / part).read_text()).encode())
    refused(f"{part}: damaged: {said}", copy)


@pytest.mark.parametrize("part", [outputs.HISTORY, outputs.PREDICTIONS])
def test_a_table_that_is_too_large_is_refused_before_it_is_read(part, original, here):
    copy = claim(original["exact"], here / "copy")
    with (copy / part).open("r+b") as file:
        file.truncate(2**29)
    refused(f"{part}: 536870912 bytes; at most 67108864 are read", copy)


@pytest.mark.parametrize("loss", ["1e-320", "2.30000001", "0.1000000000000001", "0.5_0", "+0.5", "0.50", "\N{FULLWIDTH DIGIT ONE}", "5e-1"])
def test_a_number_that_only_rounds_to_a_float32_is_refused_for_it_would_count_as_equal(loss, original, here):
    copy = claim(original["exact"], here / "copy")
    first, row, *others = (copy / outputs.HISTORY).read_text().splitlines()
    (copy / outputs.HISTORY).write_text("\n".join([first, f"{row.rpartition(',')[0]},{loss}", *others, ""]))
    refused(f"history.csv: damaged: '{loss}' where the shortest form of a float32 must be", copy)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ("[" * 100_000, "nested more than 10 deep"),
        ('{"name": 7, "classes": ["a", "b"]}', "'name' is 7; allowed: 1 to 64 letters"),
        ('{"name": "\\u001b[31m", "classes": ["a", "b"]}', "'name' is '\\x1b[31m'; allowed"),
        ('{"name": "x", "classes": ["a", "\\u202eb"]}', "'classes[1]' is "),
        ('{"name": "x", "classes": 7}', "'classes' is 7; allowed: a list of 1 to 8192 names"),
        ('{"name": "x", "classes": ["a", "b"], "classes": ["c", "d"]}', "the key 'classes' is given twice"),
    ],
    ids=["deep", "no text", "an escape", "turned", "no list", "twice"],
)
def test_what_a_file_of_a_data_set_says_of_it_has_bounds(metadata, reason, here):
    tensors.write(Path("set"), small_set().tensors(), ("dataset", metadata))
    with pytest.raises(UserError) as refusal:
        dataset.load(Path("set"))
    assert reason in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("part", [*outputs.PARTS, kept.IDENTITY, kept.ENVIRONMENT])
def test_a_pipe_or_a_device_in_the_place_of_a_part_is_refused_at_once(part, original, here):
    copy = claim(original["exact"], here / "copy")
    (copy / part).unlink()
    os.mkfifo(copy / part)
    refused(f"{part}: not a plain file", copy)
    (copy / part).unlink()
    (copy / part).symlink_to("/dev/zero")
    refused(f"{part}: not a plain file", copy)

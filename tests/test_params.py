import json
import shutil
import struct
from pathlib import Path

import msgspec
import pytest
from dvc.utils.serialize import load_yaml, loads_yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import params
from pipeline.system.errors import UserError
from tests.conftest import ROOT

FILE = Path(__file__).parent.parent / "params.yaml"
TEXT = FILE.read_text()

pytestmark = pytest.mark.fault(28)


LR = "a number above 0, at most 1000 (in float32, so at least 1.2e-38)"
MOMENTUM = "a number from 0 to below 1 (in float32, so at most 0.99999997)"


def refused(text):
    """The message with which `text` is refused."""
    with pytest.raises(UserError) as error:
        params.parse(text, "params.yaml")
    return str(error.value)


def changed(**keys):
    """The project's params.yaml with one key changed, the dots in its name written as double underscores."""
    content = msgspec.to_builtins(params.parse(TEXT))
    for name, value in keys.items():
        *sections, key = name.split("__")
        section = content
        for part in sections:
            section = section[part]
        section[key] = value
    return json.dumps(content, ensure_ascii=False)


def test_the_projects_own_file_is_the_tutorials_training_on_the_official_archive():
    loaded = params.load(FILE)
    assert (loaded.device, loaded.seed, loaded.numerics, loaded.data.source) == ("cpu", 0, "exact", "cifar10")
    assert (loaded.train.epochs, loaded.train.batch_size, loaded.train.lr, loaded.train.momentum) == (2, 64, 0.001, 0.9)


def test_params_are_frozen():
    with pytest.raises(AttributeError, match="immutable type"):
        params.load(FILE).seed = 1


def test_a_missing_file_is_refused_with_where_to_run(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: not found; run from the folder that holds it"):
        params.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfe", "cannot be read: 'utf-8' codec"), (b"seed: \0", "not valid YAML: unacceptable character #x0000")],
)
def test_a_file_that_is_not_text_is_refused_with_its_name(content, reason, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        params.load(path)
    assert str(error.value).startswith(f"{path}: {reason}")


def test_a_folder_instead_of_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: .*Is a directory"):
        params.load(tmp_path)


def test_a_missing_key_is_refused_with_what_it_is():
    assert refused(TEXT.replace("  momentum: 0.9\n", "")) == (f"params.yaml: key 'train.momentum' is missing; it is {MOMENTUM}")


def test_a_missing_section_is_refused_with_its_keys():
    text = TEXT.replace("evaluate:\n  batch_size: 1000\n", "")
    assert refused(text) == "params.yaml: key 'evaluate' is missing; it is a mapping with the keys batch_size"


def test_an_unknown_key_is_refused_with_the_known_ones():
    assert refused(TEXT + "devise: cuda\n").startswith("params.yaml: unknown key 'devise'; allowed here: device, workers, seed, numerics,")
    assert refused(changed(train__weight_decay=0.1)).startswith("params.yaml: unknown key 'train.weight_decay'; allowed here: epochs,")


def test_a_key_given_twice_is_refused_with_its_line():
    line = len(TEXT.splitlines()) + 1
    assert refused(TEXT + "seed: 1\n") == f"params.yaml: key 'seed' is given twice (line {line}); keep one"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("device", "gpu", "'device' is 'gpu'; allowed: cpu | cuda | cuda:N | mps"),
        ("device", "cuda:256", "'device' is 'cuda:256'; allowed: cpu | cuda | cuda:N | mps"),
        ("device", "cuda:01", "'device' is 'cuda:01'; allowed: cpu | cuda | cuda:N | mps"),
        ("device", "cuda:\u0663", "'device' is 'cuda:\u0663'; allowed: cpu | cuda | cuda:N | mps"),
        ("seed", -1, "'seed' is -1; allowed: a whole number from 0 to 9223372036854775807"),
        ("seed", 2**63, "'seed' is 9223372036854775808; allowed: a whole number from 0 to 9223372036854775807"),
        ("seed", True, "'seed' is True; allowed: a whole number from 0 to 9223372036854775807"),
        ("workers", 0, "'workers' is 0; allowed: a whole number from 1 to 1024"),
        ("workers", 1025, "'workers' is 1025; allowed: a whole number from 1 to 1024"),
        ("seed", None, "'seed' is None; allowed: a whole number from 0 to 9223372036854775807"),
        ("numerics", "fast", "'numerics' is 'fast'; allowed: exact | native"),
        ("data__source", ["cifar10"], f"'data.source' is ['cifar10']; allowed: {' | '.join(params.SOURCES.__args__)}"),
        ("data__folder", "a\nb", "'data.folder' is 'a\\nb'; allowed: a path"),
        ("data__size", 0, "'data.size' is 0; allowed: a whole number from 1 to 4096"),
        ("data__channels", 4, "'data.channels' is 4; allowed: 1 | 3"),
        ("data__classes", 1, "'data.classes' is 1; allowed: a whole number from 2 to 8192"),
        ("data__test_fraction", 1, "'data.test_fraction' is 1; allowed: a number between 0 and 1"),
        (
            "train",
            3,
            "'train' is 3; allowed: a mapping with the keys "
            "epochs, batch_size, lr, momentum, log_every, optimizer, schedule, augment, label_smoothing",
        ),
        ("train__epochs", 0, "'train.epochs' is 0; allowed: a whole number from 1 to 100000"),
        ("train__epochs", 2.0, "'train.epochs' is 2.0; allowed: a whole number from 1 to 100000"),
        ("train__lr", -0.1, "'train.lr' is -0.1; allowed: " + LR),
        ("train__lr", "0.1", "'train.lr' is '0.1'; allowed: " + LR),
        ("train__lr", 1e-50, "'train.lr' is 1e-50; allowed: " + LR),
        ("train__lr", 1e300, "'train.lr' is 1e+300; allowed: " + LR),
        ("train__lr", 10**400, f"'train.lr' is 1{'0' * 17}...{'0' * 19}; allowed: " + LR),
        ("train__momentum", 0.99999999, "'train.momentum' is 0.99999999; allowed: " + MOMENTUM),
        ("train__momentum", 1, "'train.momentum' is 1; allowed: " + MOMENTUM),
        ("compare__confidence", 1.0, "'compare.confidence' is 1.0; allowed: a number above 0, at most 0.999999"),
        ("compare__confidence", 0.99999900001, "'compare.confidence' is 0.99999900001; allowed: a number above 0, at most 0.999999"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_file_key_value_and_what_is_allowed(key, value, message):
    assert refused(changed(**{key: value})) == f"params.yaml: {message}"


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_a_number_that_is_not_finite_is_refused(number):
    assert refused(TEXT.replace("lr: 0.001", f"lr: {number}")).startswith("params.yaml: 'train.lr' is ")


@pytest.mark.parametrize(
    "text",
    [
        "", "text", "true", "5", "~", "2001-01-01", "- a list",
        "[", "{", "\t", "*alias", "--- a\n--- b", "? [a]\n: b", "? {a: b}\n: c", "<<: {a: b}", "!!merge x: {a: b}",
        "a: &a [*a]", "&a {b: *a}", "1: 2", "? &a [*a]\n: 1", '"\\ud800": 1', '"a\\nb": 1', "[" * 50_000, "a: " * 30_000, "x" * 200_000,
        "!!bool maybe", "!!int ''", "!!int 0x" + "f" * 9000, "!!timestamp x", "!!map text", "!!binary x", "!!set {a, b}", "!!null {}",
        "seed: " + "9" * 5000, "!!python/object/apply:os.system [true]",
    ],
)  # fmt: skip
def test_what_is_no_params_file_is_refused_in_one_line(text):
    assert len(refused(text).splitlines()) == 1


def test_aliases_that_multiply_are_refused_in_no_time():
    nested = ["&a0 [1]", *(f"&a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(30))]
    assert refused(TEXT.replace("seed: 0", f"seed: [{', '.join(nested)}]")).startswith("params.yaml: 'seed' is [[1], [[1], [1],")


@pytest.mark.parametrize(
    ("key", "named"), [("? [a]\n", "('a',)"), ("1", "1"), ("true", "True"), ("~", "None"), ("2001-01-01", "datetime.date")]
)
def test_a_key_that_is_no_text_is_refused(key, named):
    assert refused(TEXT + f"{key}: 1\n").startswith(f"params.yaml: key {named}")


def test_merged_mappings_that_multiply_are_refused_in_no_time():
    nested = ["&a0 {k: 1}", *(f"&a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}]}}" for n in range(30))]
    assert refused(f"seed: [{', '.join(nested)}]") == "params.yaml: more than 1000 keys in a mapping; this is not a params file"


def test_a_line_that_is_no_yaml_is_named_by_its_number_and_not_shown():
    line = len(TEXT.splitlines()) + 1
    message = refused(TEXT + "a: http://alice:secret@host: x\n")
    assert message == f"params.yaml: not valid YAML: mapping values are not allowed here (line {line})"


# --- what DVC reads ----------------------------------------------------------------------------------------------

SPELLINGS = {
    "seed": {
        "010": 10, "0o10": 8, "0x10": 16, "0b11": 3, "1_000": 1000, "+5": 5, "-0": 0, "!!int 5": 5, "&a 5": 5, "00": 0, "1_0": 10,
        "1:30": None, "1,000": None, "0o8": None, "!!str 5": None, "5.0": None, "1e3": None, "2001-01-01": None, "yes": None, "~": None,
        "true": None, ".inf": None, ".nan": None, "": None, "9" * 30: None, "9" * 5000: None, "*a": None, "!foo 5": None,
    },
    "lr": {
        "1e-3": 0.001, "1.0E-3": 0.001, ".5": 0.5, "1": 1.0, "+1.": 1.0, "1_0.5": 10.5, "12e-02": 0.12, "!!float 1": 1.0,
        "1e-50": None, ".inf": None, "-.inf": None, ".nan": None, "1e999": None, "1:30": None, "'1'": None, "1e": None,
    },
    "name": {
        "on": "on", "yes": "yes", "y": "y", "off": "off", "'5'": "5", "!!str 5": "5", "5": None, "0o8": "0o8", "0o10": None, "1_0": None,
        "true": None, "TRUE": None, "~": None, "Null": None, "": None, "2001-01-01": None, ".inf": None, "!!binary aGk=": None, "=": None,
        "<<": None, "[a]": None, "{a: b}": None, "on\u00a0": "on\u00a0", "!!bool on": None, "!!null x": None, "!!timestamp x": None,
    },
}  # fmt: skip
"""How a value may be written, by its key -> what it means; None: refused here."""
LINES = {"seed": "seed: 0 ", "lr": "lr: 0.001", "name": "folder: photos"}


def by_dvc(tmp_path, text):
    """What DVC's own loader makes of a params file."""
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode())
    return load_yaml(path)


@pytest.mark.fault(35)
@pytest.mark.parametrize(("key", "written"), [(key, written) for key, spellings in SPELLINGS.items() for written in spellings])
def test_what_is_accepted_dvc_accepts_and_means_the_same(key, written, tmp_path):
    text = TEXT.replace(LINES[key], f"{LINES[key].split(':')[0]}: {written} ")
    if SPELLINGS[key][written] is None:
        assert len(refused(text).splitlines()) == 1
        return
    given = params.parse(text)
    assert {"seed": given.seed, "lr": given.train.lr, "name": given.data.folder}[key] == SPELLINGS[key][written]
    assert meant(by_dvc(tmp_path, text)) == given


def meant(values):
    """The params that DVC's values are."""
    return msgspec.convert(values, params.Params)


@pytest.mark.fault(35)
@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + TEXT,
        TEXT.replace("\n", "\r\n"),
        "%YAML 1.1\n---\n" + TEXT.replace("epochs: 2", "epochs: 010"),
        "%YAML 1.2\n---\n" + TEXT + "...\n",
        TEXT.replace("batch_size: 64", "batch_size: &size 100").replace("batch_size: 1000", "batch_size: *size"),
        TEXT.replace("evaluate:\n", "evaluate:\n  <<: {batch_size: 5}\n"),
        TEXT.replace("evaluate:\n  batch_size: 1000", "evaluate:\n  <<: [{batch_size: 5}, {batch_size: 6}]"),
    ],
    ids=["a byte order mark", "CRLF", "a document of YAML 1.1", "markers", "an alias", "a merge that is overridden", "merges"],
)  # fmt: skip
def test_a_document_that_is_accepted_means_to_dvc_the_same(text, tmp_path):
    assert meant(by_dvc(tmp_path, text)) == params.parse(text)


@pytest.mark.fault(35)
def test_yaml_1_1_means_other_numbers_where_the_document_asks_for_it():
    assert params.parse("%YAML 1.1\n---\n" + TEXT.replace("epochs: 2", "epochs: 010")).train.epochs == 8


@pytest.mark.fault(35)
@pytest.mark.parametrize("name", ["on", "y", "0o10", "1_0", "5", "1e5", "null", "true", "2001-01-01", "0x1"])
def test_what_is_written_dvc_reads_the_same(name, tmp_path):
    given = params.parse(changed(data__folder=name, train__lr=1e-05))
    assert meant(by_dvc(tmp_path, params.dump(given))) == given


@pytest.mark.fault(36)
@pytest.mark.parametrize(("key", "value", "becomes"), [("lr", 2.0**-126, 2.0**-126), ("momentum", 1 - 2.0**-25 - 2.0**-53, 1 - 2.0**-24)])
def test_the_bounds_are_those_of_what_training_computes_with(key, value, becomes):
    given = getattr(params.parse(changed(**{f"train__{key}": value})).train, key)
    assert struct.unpack("f", struct.pack("f", given))[0] == becomes


@pytest.mark.parametrize("written", ["a\\0b", "a\\ud800", "a\\n"])
def test_a_path_that_no_system_knows_is_refused(written):
    text = TEXT.replace("folder: photos", f'folder: "{written}"')
    assert refused(text).endswith("; allowed: a path")


printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
valid = st.builds(
    params.Params,
    device=st.sampled_from(["cpu", "cuda", "cuda:0", "cuda:17", "mps"]),
    workers=st.integers(1, 1024),
    seed=st.integers(0, 2**63 - 1),
    numerics=st.sampled_from(["exact", "native"]),
    data=st.builds(
        params.Data,
        source=st.sampled_from(params.SOURCES.__args__),
        folder=printable,
        test_fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
        size=st.integers(1, 4096),
        channels=st.sampled_from([1, 3]),
        classes=st.integers(2, 8192),
        images=st.integers(5, 10_000_000),
    ),
    train=st.builds(
        params.Train,
        epochs=st.integers(1, 100_000),
        batch_size=st.integers(1, 1_000_000),
        lr=st.floats(2.0**-126, 1000),
        momentum=st.floats(0, 1 - 2.0**-25, exclude_max=True),
        log_every=st.integers(1, 1_000_000),
        optimizer=st.builds(
            params.Optimizer,
            name=st.sampled_from(["adam", "adamw"]),
            weight_decay=st.floats(0, 1000),
            betas=st.tuples(*[st.floats(0, 0.9999)] * 2),
            eps=st.floats(1e-30, 1),
            decay_norms_and_biases=st.booleans(),
        ),
        schedule=st.builds(
            params.Schedule,
            name=st.just("steps"),
            warmup_epochs=st.floats(0, 1000),
            milestones=st.sets(st.integers(1, 1000), min_size=1).map(sorted).map(tuple),
            factor=st.floats(0, 1, exclude_min=True),
        ),
        augment=st.builds(
            params.Augment,
            flip=st.booleans(),
            crop=st.integers(0, 9),
            padding=st.sampled_from(["zeros", "reflect"]),
            cutout=st.integers(0, 9),
        ),
        label_smoothing=st.floats(0, 1, exclude_max=True),
    ),
    evaluate=st.builds(params.Evaluate, batch_size=st.integers(1, 1_000_000)),
    compare=st.builds(
        params.Compare,
        margin_points=st.floats(0, 100, exclude_min=True),
        confidence=st.floats(0, 0.999999, exclude_min=True),
    ),
)


@given(valid)
def test_every_valid_file_gives_the_params_that_it_was_written_from(written):
    assert params.parse(params.dump(written)) == written
    assert params.parse(json.dumps(msgspec.to_builtins(written), ensure_ascii=False)) == written


def holds(text):
    """Whether `text` gives Params that DVC reads the same, or a UserError of one short line that a terminal can show."""
    try:
        return params.parse(text) == meant(loads_yaml(text))
    except UserError as error:
        return len(str(error).splitlines()) == 1 and len(str(error).encode()) < 2000


@given(st.text() | st.text("abc:-[]{}&*!?|>'\"#%@,\n \t0123~<").map("a: ".__add__))
def test_no_text_escapes(text):
    assert holds(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_no_changed_value_escapes(data):
    content = msgspec.to_builtins(params.parse(TEXT))
    section = content
    while True:
        key = data.draw(st.sampled_from(sorted(section)))
        if not isinstance(section[key], dict) or not section[key] or data.draw(st.booleans()):
            break
        section = section[key]
    section[data.draw(st.just(key) | st.text(max_size=5))] = data.draw(values)
    assert holds(json.dumps(content))


@given(st.integers(0, len(TEXT)), st.integers(0, 30), st.text(max_size=10))
def test_no_damaged_file_escapes(start, removed, inserted):
    assert holds(TEXT[:start] + inserted + TEXT[start + removed :])


@given(st.binary(max_size=200))
def test_no_bytes_escape(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError):
        params.load(path)


@pytest.mark.fault(79)
@pytest.mark.parametrize("file", [params.PARAMS, "docs/examples/recipe.yaml"])
def test_params_yaml_is_as_dvc_writes_it_so_an_experiments_diff_has_the_changed_line_alone(file, tmp_path):
    from dvc.utils.serialize import modify_yaml

    for change, lines in (({}, 0), ({"seed": 1}, 1), ({"workers": 2, "device": "cuda"}, 2)):
        shutil.copy(ROOT / file, tmp_path / params.PARAMS)
        with modify_yaml(str(tmp_path / params.PARAMS)) as written:
            written.update(change)
        before, after = (path.read_text().splitlines() for path in (ROOT / file, tmp_path / params.PARAMS))
        assert len(before) == len(after)
        assert sum(ours != theirs for ours, theirs in zip(before, after, strict=True)) == lines

"""params.yaml -> frozen, validated objects. Read once, by the command line; functions take the section they need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, to_builtins

from pipeline.system import schema
from pipeline.system.errors import UserError, shown

PARAMS = Path("params.yaml")
LARGEST = 100_000
"""Characters in a params file."""
LARGEST_MAPPING = 1000
"""Keys in a mapping, those that merge keys bring counted each time."""


def _whole(low: int, high: int) -> Meta:
    return Meta(ge=low, le=high, description=f"a whole number from {low} to {high}")


Beta = Annotated[float, Meta(ge=0, lt=1 - 2.0**-25, description="a number from 0 to below 1 (in float32, so at most 0.99999997)")]
DEVICE = r"cpu|mps|cuda(?::(?:0|[1-9][0-9]?))?"
"""What `device` may be. PyTorch takes more, and other devices for some of it: it makes cuda:256 cuda:0."""
Device = Annotated[str, schema.text("cpu | cuda | cuda:N | mps", DEVICE)]
Workers = Annotated[int, _whole(1, 1024)]
Seed = Annotated[int, _whole(0, 2**63 - 1)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of params.yaml."""


SOURCES = Literal[
    "cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "qmnist", "emnist", "usps", "svhn", "stl10", "gtsrb", "flowers102",
    "food101", "oxford_iiit_pet", "dtd", "imagenette", "country211", "rendered_sst2", "folder", "synthetic",
]  # fmt: skip


class Data(Section, frozen=True, kw_only=True):
    """The `download` stage. What has a default need not be given; docs/data.md says what each source reads of it."""

    source: SOURCES
    """A data set of torchvision's (pipeline/data/sets.py has the table), a folder of pictures, or the synthetic set."""
    folder: Annotated[str, schema.text("a path", r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")] = "photos"
    """Of source folder: train/CLASS/ and test/CLASS/ (or val/CLASS/) with pictures, or CLASS/ alone."""
    test_fraction: Annotated[float, Meta(gt=0, lt=1, description="a number between 0 and 1")] = 0.2
    """Of source folder, where it has no test/: the part of the pictures that are test images."""
    size: Annotated[int, _whole(1, 4096)] = 32
    """Pixels a side that pictures become, of a folder and of sets whose pictures have many sizes; and of the synthetic set."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colours, of a folder and of the synthetic set."""
    classes: Annotated[int, _whole(2, 8192)] = 10
    """Of the synthetic set."""
    images: Annotated[int, _whole(5, 10_000_000)] = 10_000
    """Training images of the synthetic set; a fifth as many are test images."""


SIMPLE_CNN = "simple_cnn"


Pixel = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]


class Normalize(Section, frozen=True, kw_only=True):
    """A mean and a deviation for each channel of images from 0 to 1, as torchvision.transforms.Normalize has them."""

    mean: Annotated[tuple[Pixel, ...], Meta(min_length=1, max_length=3)]
    std: Annotated[tuple[Annotated[float, Meta(ge=2.0**-20, le=1, description="a number above 0, at most 1")], ...],
                   Meta(min_length=1, max_length=3)]  # fmt: skip


class Model(Section, frozen=True, kw_only=True, omit_defaults=True):
    """The network that is trained; docs/networks.md says which there are."""

    name: Annotated[
        str, schema.text("simple_cnn | a network of torchvision's | networks/FILE.py:CLASS", r"[A-Za-z0-9_./-]{1,200}(?::\w{1,100})?")
    ] = SIMPLE_CNN
    arguments: dict[Annotated[str, schema.text("a name", r"\w{1,100}")], bool | int | float | str] = {}
    """Of its constructor; the numbers of classes and channels come from the data."""
    auxiliary: Annotated[float, Meta(ge=0, le=100, description="a number from 0 to 100")] = 0.3
    """How much a head beside the main one counts in the loss (GoogLeNet's, Inception's)."""
    normalize: bool | Normalize = False
    """Whether (images - mean) / std comes first, of the training images or as given."""
    weights: Annotated[
        str,
        schema.text(
            "networks/FILE.pth, .pt or .safetensors",
            r"networks/(?:[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}/){0,9}"
            r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\.(?:pth|pt|safetensors)|",
        ),
    ] = ""
    """A file of weights that the training begins with, in place of those drawn for the seed."""  # fmt: skip

    @property
    def is_own(self) -> bool:
        """Whether it is of a file of somebody's own, whose name does not say what it computes."""
        return ".py:" in self.name


class Optimizer(Section, frozen=True, kw_only=True, omit_defaults=True):
    """What changes the weights, as torch.optim defines it; its rate is `train.lr`, and `train.momentum` that of sgd."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    nesterov: bool = False
    """Of sgd."""
    weight_decay: Annotated[float, Meta(ge=0, le=1000, description="a number from 0 to 1000")] = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Of adam and adamw."""
    eps: Annotated[float, Meta(ge=2.0**-100, le=1, description="a number from 1e-30 to 1")] = 1e-8
    """Of adam and adamw."""
    decay_norms_and_biases: bool = True
    """Whether weight decay is also for what has one dimension: biases and the weights of norms."""

    def __post_init__(self) -> None:
        if self.nesterov and self.name != "sgd":
            raise ValueError(f"nesterov is for sgd, and the name is {self.name}; leave it out")


class Schedule(Section, frozen=True, kw_only=True, omit_defaults=True):
    """How `train.lr` changes, step by step; docs/recipes.md draws it."""

    name: Literal["constant", "steps", "cosine", "one_cycle"] = "constant"
    warmup_epochs: Annotated[float, Meta(ge=0, le=100_000, description="a number of epochs, 0 or above")] = 0.0
    """In which the rate rises to `lr`; of one_cycle, 0 stands for three tenths of the training."""
    milestones: tuple[Annotated[int, _whole(1, 100_000)], ...] = ()
    """Of steps: after how many epochs the rate becomes `factor` times what it was."""
    factor: Annotated[float, Meta(gt=0, le=1, description="a number above 0, at most 1")] = 0.1
    """Of steps."""

    def __post_init__(self) -> None:
        if (self.name == "steps") != bool(self.milestones):
            raise ValueError("milestones are for the schedule steps, which needs one or more, such as [8, 12]")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must rise")


class Augment(Section, frozen=True, kw_only=True, omit_defaults=True):
    """What is done to a training image each time it is seen, drawn from the seed, the epoch and the image's number."""

    flip: bool = False
    """Mirror half of the images, left to right."""
    crop: Annotated[int, _whole(0, 4096)] = 0
    """Pixels by which each side is padded, before a window of the image's own size is cut out."""
    padding: Literal["zeros", "reflect"] = "zeros"
    """Of crop."""
    cutout: Annotated[int, _whole(0, 4096)] = 0
    """Side, in pixels, of a black square whose middle is anywhere in the image."""


class Train(Section, frozen=True, kw_only=True, omit_defaults=True):
    """The `train` stage; the defaults are the tutorial's. `lr` and `momentum` are float32 there, and checked as such."""

    epochs: Annotated[int, _whole(1, 100_000)]
    batch_size: Annotated[int, _whole(1, 1_000_000)]
    lr: Annotated[float, Meta(ge=2.0**-126, le=1000, description="a number above 0, at most 1000 (in float32, so at least 1.2e-38)")]
    """From the smallest normal float32 on: some devices take smaller ones for 0."""
    momentum: Annotated[float, Meta(ge=0, lt=1 - 2.0**-25, description="a number from 0 to below 1 (in float32, so at most 0.99999997)")]
    """Below the middle between 1 and the largest float32 below it, which would be rounded to 1."""
    log_every: Annotated[int, _whole(1, 1_000_000)]
    """Steps between two rows of the history."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    label_smoothing: Annotated[float, Meta(ge=0, lt=1, description="a number from 0 to below 1")] = 0.0
    """The part of the target that all classes share."""

    def __post_init__(self) -> None:
        if self.optimizer.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov needs a momentum above 0")


class Evaluate(Section, frozen=True, kw_only=True):
    """The `evaluate` stage."""

    batch_size: Annotated[int, _whole(1, 1_000_000)]


class Compare(Section, frozen=True, kw_only=True):
    """The `compare` command."""

    margin_points: Annotated[float, Meta(gt=0, le=100, description="a number above 0, at most 100")]
    """Percentage points of accuracy within which two models are equivalent."""
    confidence: Annotated[float, Meta(gt=0, le=0.999999, description="a number above 0, at most 0.999999")]
    """Of the interval of the difference in accuracy."""


class Params(Section, frozen=True, kw_only=True):
    """All of params.yaml."""

    device: Device
    """Where train and evaluate compute."""
    workers: Workers
    """Number of processes that train together on this machine."""
    seed: Seed
    """Chooses the initial weights and the order of the images."""
    numerics: Literal["exact", "native"]
    data: Data
    model: Model = Model()
    train: Train
    evaluate: Evaluate
    compare: Compare


def load(path: Path = PARAMS) -> Params:
    """Read and validate a params file.

    Raises:
        UserError: with the file, the key, the value found and what is allowed.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the folder that holds it (a clone of this project)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return parse(text, str(path))


def parse(text: str, source: str = "params") -> Params:
    """Validate the YAML `text`; `source` names it in errors. Raises UserError as `load` does."""
    return schema.decode(Params, _yaml(text, source), source)


def section(cls: type[schema.Document], values: Any, source: str) -> schema.Document:
    """A section of params as something else than params.yaml records it. Raises UserError as `load` does."""
    return schema.decode(cls, values, source, cls.__name__.lower())


def dump(settings: Params | dict[str, Any]) -> str:
    """YAML that `parse`, and DVC, read as `settings`."""
    import io

    from ruamel.yaml import YAML

    text = io.StringIO()
    writer = YAML()
    writer.default_flow_style = False
    writer.dump(to_builtins(settings), text)
    return text.getvalue()


def _yaml(text: str, source: str) -> Any:
    """The values in a YAML document, as DVC reads it: with ruamel.yaml's safe loader, so YAML 1.2 unless the document says otherwise."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import SafeConstructor
    from ruamel.yaml.error import MarkedYAMLError

    class Constructor(SafeConstructor):
        """DVC's, with our line for a key that is given twice, and a bound for merge keys that multiply."""

        def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
            if key in mapping:
                raise UserError(f"{source}: key {shown(key)} is given twice (line {key_node.start_mark.line + 1}); keep one")
            return True

        def flatten_mapping(self, node: Any) -> Any:
            super().flatten_mapping(node)
            if len(node.value) > LARGEST_MAPPING:
                raise UserError(f"{source}: more than {LARGEST_MAPPING} keys in a mapping; this is not a params file")

    if len(text) > LARGEST:
        raise UserError(f"{source}: longer than {LARGEST} characters; this is not a params file")
    reader = YAML(typ="safe")
    reader.Constructor = Constructor
    try:
        return reader.load(text)
    except UserError:
        raise
    except MarkedYAMLError as error:  # its text quotes the line, which may hold a password
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{source}: not valid YAML: {error.problem or error.context} (line {mark.line + 1 if mark else '?'})") from None
    except Exception as error:  # "!!bool maybe" is a KeyError, "[[[[..." a RecursionError, "!!timestamp" of nonsense a ValueError
        problem = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: not valid YAML: {problem or type(error).__name__}") from None

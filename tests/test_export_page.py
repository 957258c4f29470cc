"""`export --to FILE.html`: what is in the page, and what headless Chromium makes of images in it, to the bit."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data import pictures
from pipeline.exact import draws
from pipeline.params import Model as Network
from pipeline.runs import outputs
from pipeline.system.errors import UserError
from pipeline.weights import predict
from pipeline.weights.export import export
from tests import browser, network_runs
from tests.conftest import ROOT
from tests.network_runs import DATA

HOSTILE = '</script><script>window.hostile = 1</script><img src=x onerror="window.hostile = 1">'
CLASSES = (HOSTILE, "<b>ring</b>", *DATA.classes[2:])
HOSTILE_DATA = dataclasses.replace(DATA, classes=CLASSES)
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of all test images in run/, and its page."""
    folder = tmp_path_factory.mktemp("page")
    network_runs.write(folder / "run", data=HOSTILE_DATA)
    export(folder / "run", folder / "page.html")
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "page.html").read_text()


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.chromium(*CAMERA) as chromium:
        yield chromium


def png(image: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    """A uint8 image [H, W, channels] as a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image), mode).save(file, "PNG", **options)
    return file.getvalue()


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_asks_for_nothing(text: str) -> None:
    assert re.findall(r"<script[^>]*\ssrc=|<link[^>]*href=\"(?!data:)|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", text) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    directives = dict(part.strip().split(" ", 1) for part in html.unescape(policy[1]).split(";"))
    assert directives["default-src"] == "'none'"
    assert re.fullmatch(r"('sha256-[A-Za-z0-9+/=]{44}' ?){3}", directives["script-src"])
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]{44}'", directives["style-src"])
    assert "unsafe" not in policy[1]


def test_names_of_classes_are_text(text: str) -> None:
    assert "<script>window" not in text
    assert "<img src=x" not in text
    assert "<b>ring" not in text


def test_the_page_names_the_weights(folder: Path, text: str) -> None:
    assert outputs.read_model(folder / "run").fingerprint in text
    assert "synthetic, seed 3, numerics exact-3" in text


def test_the_same_run_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    assert export(folder / "run", tmp_path / "page.html") == [
        f"wrote {tmp_path / 'page.html'}: it computes with exact-3, bit for bit as `predict` does"
    ]
    assert (tmp_path / "page.html").read_bytes() == (folder / "page.html").read_bytes()


def test_the_page_goes_into_what_the_user_names_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "net.html").symlink_to(tmp_path / "published" / "net.html")
    export(folder / "run", tmp_path / "net.html")
    assert (tmp_path / "net.html").is_symlink()
    assert (tmp_path / "published" / "net.html").read_bytes() == (folder / "page.html").read_bytes()


def test_a_native_runs_page_says_that_its_bits_are_not_predicts(tmp_path: Path) -> None:
    network_runs.write(tmp_path / "run", "native", images=10)
    (said,) = export(tmp_path / "run", tmp_path / "page.html")
    assert said.endswith("it computes with exact-3; the run's numerics are native, so it is close to `predict`, not bit for bit")
    text = " ".join((tmp_path / "page.html").read_text().split())
    assert "close to those of <code>python -m pipeline predict</code>, but not the same bits" in text
    assert "bit for bit, on every device" not in text


def test_a_simple_cnn_from_before_there_was_network_json_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    network_runs.write(tmp_path / "run", data=HOSTILE_DATA, images=10, recorded=True)
    export(tmp_path / "run", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == (folder / "page.html").read_bytes()


OWN = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(3072, classes)
        self.register_buffer("order", torch.tensor([2, 1, 0]))

    def forward(self, x):
        return COMPUTED
"""
REFUSED = {
    "self.fc(F.elu(F.gelu(x.float())).flatten(1))": "a page cannot compute torch.nn.functional.gelu, torch.nn.functional.elu",
    "self.fc(F.dropout(x, 0, True).flatten(1))": "a page cannot compute torch.nn.functional.dropout with training = true",
    "self.fc(x[:, self.order].flatten(1))": 'a page cannot compute torch.Tensor.__getitem__ with index = {"tuple": ',
    "self.fc(x.flatten(1)) + self.order[0]": 'a page cannot compute torch.Tensor.__getitem__ with input = {"held": "order"}',
    "self.fc(x.flatten(1)).cumsum(1)":
        "networks/net.py:Net: a page needs a fixed list of operations, but 'torch.Tensor.cumsum' has no exact form",
}  # fmt: skip


@pytest.mark.parametrize("computed", REFUSED)
def test_a_network_with_what_the_page_lacks_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: str
) -> None:
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "net.py").write_text(OWN.replace("COMPUTED", computed))
    monkeypatch.chdir(tmp_path)
    network_runs.write(Path("run"), "native", images=2, network=Network(name="networks/net.py:Net"), recorded=True)
    with pytest.raises(UserError) as refused:
        export(Path("run"), Path("page.html"))
    assert str(refused.value).startswith(REFUSED[computed])
    assert str(refused.value).endswith("; --to FILE.onnx takes any network")
    assert not Path("page.html").exists()


def test_another_network_without_network_json_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    network_runs.write(tmp_path / "run", images=2, network=Network(name="networks/my_net.py:Net"))
    with pytest.raises(
        UserError, match=r"^networks/my_net.py:Net: the run has no network.json, and a page is made of that; --to FILE.onnx"
    ):
        export(tmp_path / "run", tmp_path / "page.html")


def test_a_run_of_other_numerics_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    network_runs.write(tmp_path / "run", "exact-1")
    with pytest.raises(UserError, match="use the version that made the run"):
        export(tmp_path / "run", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


# --- in the browser --------------------------------------------------------------------------------------------------


def visit(driver: Any, page: Path, **size: Any) -> None:
    browser.visit(driver, page, **size)
    browser.wait_for(driver, "document.documentElement.dataset.selfTest")


def classified(driver: Any, files: Sequence[bytes]) -> list[dict[str, Any]]:
    """What the page makes of image files: their 32 x 32 bytes, the logits and the confidences, float32."""
    driver.set_script_timeout(120)
    script = """
      const [files, done] = arguments;
      (async () => {
        const all = [];
        for (const file of files) {
          const { bytes, logits, predicted, confidences } = await classify(new Blob([bytesOf(file)]));
          all.push({ bytes: [...bytes], logits: [...logits], predicted, confidences: [...confidences] });
        }
        return all;
      })().then(done, (error) => done(String(error)));
    """
    answers = driver.execute_async_script(script, [base64.b64encode(file).decode() for file in files])
    assert isinstance(answers, list), answers
    return answers


@pytest.mark.browser
def test_every_test_images_confidence_is_its_row_of_the_predictions_to_the_bit(folder: Path, driver: Any) -> None:
    visit(driver, folder / "page.html", width=1280)
    assert driver.execute_script("return document.documentElement.dataset.selfTest") == "passed"
    files = [png(image.transpose(1, 2, 0)) for image in DATA.test_images]
    answers = [answer for first in range(0, len(files), 250) for answer in classified(driver, files[first : first + 250])]
    with open(folder / "run" / outputs.PREDICTIONS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(answers) == len(rows) == 2000
    assert [CLASSES[answer["predicted"]] for answer in answers] == [row["predicted"] for row in rows]
    assert [str(np.float32(max(answer["confidences"]))) for answer in answers] == [row["confidence"] for row in rows]
    assert browser.requests(driver) == [(folder / "page.html").as_uri()]
    assert browser.complaints(driver) == []


NETWORKS = {
    "networks/resnet20.py:ResNet20": {},
    "networks/my_net.py:Net": {},
    "mobilenet_v2": {"width_mult": 0.25},
    "mobilenet_v3_small": {"width_mult": 0.5},
    "squeezenet1_1": {},
}


@pytest.mark.browser
@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_of_any_network_gives_the_predictions_of_its_run_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: Any, name: str
) -> None:
    monkeypatch.chdir(ROOT)
    asked = Network(name=name, arguments=NETWORKS[name])
    model = network_runs.write(tmp_path / "run", scale=1.0, images=10, network=asked, recorded=True)
    export(tmp_path / "run", tmp_path / "page.html")
    visit(driver, tmp_path / "page.html", width=1280)
    assert driver.execute_script("return document.documentElement.dataset.selfTest") == "passed"
    answers = classified(driver, [png(image.transpose(1, 2, 0)) for image in DATA.test_images[:10]])
    assert [answer["logits"] for answer in answers] == predict.Network(model, "cpu")(DATA.test_images[:10]).logits.tolist()
    rows = [(row.predicted, str(row.confidence)) for row in outputs.read_predictions(tmp_path / "run")]
    assert [(DATA.classes[answer["predicted"]], str(np.float32(max(answer["confidences"])))) for answer in answers] == rows
    assert browser.complaints(driver) == []


def drawn(label: str, *shape: int) -> np.ndarray:
    return draws.random_integers(label, 256, int(np.prod(shape))).astype(np.uint8).reshape(shape)


@pytest.mark.browser
def test_images_of_every_size_and_alpha_become_predicts_bytes(folder: Path, driver: Any) -> None:
    alpha, colour = np.indices((256, 256)).astype(np.uint8)
    every_alpha = np.stack([colour, 255 - colour, colour // 2, alpha], -1)
    images = {
        "every alpha": png(every_alpha),
        "one pixel": png(drawn("one", 1, 1, 3)),
        "small": png(drawn("small", 7, 5, 4)),
        "odd": png(drawn("odd", 100, 37, 3)),
        "wide": png(drawn("wide", 50, 90, 4)),
        "in tiles": png(drawn("tiles", 1100, 1300, 3)),
        "in tiles, with alpha": png(drawn("tiles", 1030, 1050, 4)),
        "grey": png(drawn("grey", 40, 40), "L"),
        "a profile": png(drawn("profile", 32, 32, 3), icc_profile=wide_gamut()),
        "turned": png(drawn("turned", 40, 60, 3), exif=orientation(6)),
    }
    visit(driver, folder / "page.html", width=1280)
    for name, answer in zip(images, classified(driver, list(images.values())), strict=True):
        assert np.array_equal(answer["bytes"], pictures.read(io.BytesIO(images[name]), name).ravel()), name
    assert [line for line in browser.complaints(driver) if "WebGL" not in line] == []  # a driver in software says that it is slow


def wide_gamut() -> bytes:
    """A colour profile that is not sRGB: with its green and blue exchanged, any use of it shows."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    green, blue = (profile.index(tag, 128) for tag in (b"gXYZ", b"bXYZ"))
    profile[green : green + 4], profile[blue : blue + 4] = b"bXYZ", b"gXYZ"
    return bytes(profile)


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def give(driver: Any, content: bytes, name: str = "picture.png") -> None:
    """Choose a file as a reader does."""
    script = """
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytesOf(arguments[0])], arguments[1]));
      document.getElementById("file").files = transfer.files;
      document.getElementById("file").dispatchEvent(new Event("change"));
    """
    driver.execute_script(script, base64.b64encode(content).decode(), name)
    browser.wait_for(driver, "!document.getElementById('status').textContent.startsWith('Looking')")


def shown(driver: Any, element: str) -> str:
    text: str = driver.execute_script("return document.getElementById(arguments[0]).textContent", element)
    return " ".join(text.split())


@pytest.mark.browser
def test_a_chosen_image_is_shown_as_the_network_sees_it_with_its_bars(folder: Path, driver: Any) -> None:
    visit(driver, folder / "page.html", width=1280)
    give(driver, png(DATA.test_images[5].transpose(1, 2, 0)))
    with open(folder / "run" / outputs.PREDICTIONS, newline="") as file:
        row = list(csv.DictReader(file))[5]
    percent = f"{100 * float(row['confidence']):.2f} %"
    assert shown(driver, "status") == f"{row['predicted']}, {percent}"
    bars = driver.execute_script("return [...document.querySelectorAll('#bars li')].map(li => [...li.children].map(c => c.textContent))")
    assert bars[0] == [row["predicted"], "", percent]
    assert sorted(name for name, _, _ in bars) == sorted(CLASSES)
    values = [float(value.removesuffix(" %")) for _, _, value in bars]
    assert values == sorted(values, reverse=True)
    seen = driver.execute_script("return [...document.getElementById('seen').getContext('2d').getImageData(0, 0, 32, 32).data]")
    assert np.array_equal(np.array(seen).reshape(32, 32, 4)[..., :3].transpose(2, 0, 1), DATA.test_images[5])
    assert re.fullmatch(r"[\d.]+ ms to read the picture, [\d.]+ ms to classify it\.", shown(driver, "time"))
    assert driver.execute_script("return window.hostile") is None


@pytest.mark.browser
def test_what_is_saved_is_what_predict_would_read(folder: Path, driver: Any) -> None:
    visit(driver, folder / "page.html", width=1280)
    give(driver, png(drawn("saved", 77, 50, 3)))
    saved = driver.execute_script("return document.getElementById('save').href").partition("base64,")[2]
    content = base64.b64decode(saved)
    assert np.array_equal(pictures.read(io.BytesIO(content), "x"), pictures.read(io.BytesIO(png(drawn("saved", 77, 50, 3))), "x"))


@pytest.mark.browser
@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_can_be_dropped_and_pasted(folder: Path, driver: Any, way: str) -> None:
    visit(driver, folder / "page.html", width=1280)
    script = """
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytesOf(arguments[0])], "x.png"));
      dispatchEvent(arguments[1] === "drop" ? new DragEvent("drop", { dataTransfer: transfer, cancelable: true })
                                            : new ClipboardEvent("paste", { clipboardData: transfer }));
    """
    driver.execute_script(script, base64.b64encode(png(DATA.test_images[0].transpose(1, 2, 0))).decode(), way)
    browser.wait_for(driver, "!document.getElementById('result').hidden")
    assert shown(driver, "status").rpartition(", ")[0] in CLASSES


@pytest.mark.browser
def test_what_is_no_image_is_said_and_no_old_result_stays(folder: Path, driver: Any) -> None:
    visit(driver, folder / "page.html", width=1280)
    give(driver, png(DATA.test_images[0].transpose(1, 2, 0)))
    give(driver, b"hello", "notes.txt")
    assert shown(driver, "status") == "notes.txt: this browser cannot read it as an image."
    assert driver.execute_script("return document.getElementById('result').hidden") is True
    driver.execute_script("dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")
    assert shown(driver, "status") == "There is no image file in that."


@pytest.mark.browser
def test_the_camera_gives_a_picture_and_is_let_go(folder: Path, driver: Any) -> None:
    visit(driver, folder / "page.html", width=390)
    driver.find_element("id", "camera").click()
    browser.wait_for(driver, "document.activeElement.id === 'take'")
    driver.find_element("id", "take").click()
    browser.wait_for(driver, "!document.getElementById('result').hidden")
    assert shown(driver, "status").rpartition(", ")[0] in CLASSES
    track = "document.getElementById('video').srcObject.getTracks()[0]"
    driver.execute_script(f"window.track = {track}")
    driver.find_element("id", "stop").click()
    assert driver.execute_script("return window.track.readyState") == "ended"
    assert driver.execute_script("return document.activeElement.id") == "camera"
    assert driver.execute_script("return document.getElementById('viewfinder').hidden") is True


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_it_fits_a_phone_and_a_desktop_and_is_reached_by_keyboard(folder: Path, driver: Any, width: int, dark: bool) -> None:
    visit(driver, folder / "page.html", width=width, dark=dark)
    give(driver, png(DATA.test_images[5].transpose(1, 2, 0)))
    overflow = driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow == 0
    certain = """
      const [first, second] = document.querySelectorAll("#bars .value");
      first.textContent = "100.00 %";  // the longest
      return [first.scrollWidth - first.clientWidth, first.clientHeight - second.clientHeight];
    """
    assert driver.execute_script(certain) == [0, 0], "it stands on one line, in its column"
    focusable = driver.execute_script(
        "return [...document.querySelectorAll('a[href], button, input')].filter(e => e.offsetParent && e.tabIndex >= 0).map(e => e.id)"
    )
    assert focusable == ["choose", "camera", "save"]
    unnamed = (
        "return [...document.querySelectorAll('button, a, canvas, section, video')].filter(e => !(e.ariaLabel || e.textContent.trim()))"
    )
    assert driver.execute_script(unnamed) == []
    assert driver.execute_script("return document.getElementById('status').ariaLive") == "polite"
    assert driver.execute_script("return getComputedStyle(document.getElementById('seen')).imageRendering") == "pixelated"


@pytest.mark.browser
@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ("f32", "Self-test failed: this browser computes other bits."),
        ("createImageBitmap", "Self-test failed: this browser changes the pixels of a picture."),
    ],
)
def test_the_self_test_finds_a_browser_that_is_off_by_a_bit(folder: Path, tmp_path: Path, driver: Any, spoilt: str, said: str) -> None:
    """A browser is played that does not round to float32, or that adds noise to pictures as some do against tracking."""
    text = (folder / "page.html").read_text()
    other = {
        "f32": ("const f32 = Math.fround;", "const f32 = (x) => x;"),
        "createImageBitmap": (
            "const samples = context.getImageData",
            "context.fillRect(3, 3, 1, 1);\n  const samples = context.getImageData",
        ),
    }[spoilt]
    assert text.count(other[0]) == 1
    policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (tmp_path / "page.html").write_text(policy.replace(*other))
    visit(driver, tmp_path / "page.html", width=1280)
    assert shown(driver, "self-test") == said
    assert json.loads(driver.execute_script("return JSON.stringify(document.documentElement.dataset)")) == {"selfTest": "failed"}

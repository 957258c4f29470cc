"""What headless Chromium makes of images in the page of `export`, to the bit, and how the page is used."""

from __future__ import annotations

import base64
import csv
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
from pipeline.weights import predict
from pipeline.weights.export import export
from tests import browser, exported, network_runs
from tests.conftest import ROOT
from tests.exported import CLASSES
from tests.network_runs import DATA

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported.write(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.chromium(*CAMERA) as chromium:
        yield chromium


def png(image: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    """A uint8 image [H, W, channels] as a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image), mode).save(file, "PNG", **options)
    return file.getvalue()


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

"""Claims about what is in an image."""

import json
import re

import pytest

import pipeline
from tests.containers import LIMITS, docker, run

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("image", ["cpu_image", "cuda_image"])
def test_an_image_holds_no_compiler_data_git_or_dvc_cache(image, request):
    look = ("-c", "ls -A /opt/pipeline; which cc gcc g++ nvcc; true")
    inside = docker("run", "--rm", *LIMITS, "--entrypoint", "sh", request.getfixturevalue(image), *look).stdout
    assert sorted(inside.split()) == [
        ".dvc",
        ".dvcignore",
        ".revision",
        "LICENSE",
        "docker",
        "dvc.yaml",
        "networks",
        "params.yaml",
        "photos",
        "pipeline",
        "requirements",
    ]


def test_an_image_runs_as_an_ordinary_user_under_tini(cpu_image):
    shown = docker("run", "--rm", *LIMITS, cpu_image, "sh", "-c", "cat /proc/1/comm; id -u; id -g").stdout
    assert shown.split() == ["tini", "1000", "1000"]


@pytest.mark.parametrize("image", ["cpu_image", "cuda_image"])
def test_doctor_in_an_image_finds_nothing_wrong_on_a_checkout_and_without_one(image, request, make_checkout):
    image, doctor = request.getfixturevalue(image), ("python", "-m", "pipeline", "doctor", "--json")
    for said in (run(image, make_checkout(), *doctor).stdout, docker("run", "--rm", *LIMITS, image, *doctor).stdout):
        report = json.loads(said)
        assert [about for about, finding in report["findings"].items() if not finding["ok"]] == []
        assert report["usable"] is True


def test_an_image_is_labelled(cpu_image):
    labels = json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", cpu_image).stdout)
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == pipeline.__version__
    assert re.fullmatch(r"unknown|[0-9a-f]{7,40}(-dirty)?|.*-g[0-9a-f]{7,40}(-dirty)?", labels["org.opencontainers.image.revision"])

"""Claims about a container that is killed, stopped or started beside another: a state, no lock, no harm."""

import json
import re
from pathlib import Path

import pytest

from tests.containers import Container, docker, run

pytestmark = pytest.mark.docker


TRAINING = r"train: \d+/\d+ steps|resumes at step"


@pytest.fixture(scope="module")
def killed(cpu_image, make_checkout) -> tuple[Path, str]:
    """A checkout on which a container was killed in training, and what it left in DVC's rwlock."""
    folder = make_checkout(settings={"epochs: 2": "epochs: 10000"})
    with Container(cpu_image, folder) as container:
        container.says(TRAINING)
        docker("kill", container.name)
    return folder, (folder / ".dvc" / "tmp" / "rwlock").read_text()


@pytest.mark.fault(23)
@pytest.mark.fault(15)
def test_after_a_kill_the_next_container_trains_and_stopped_leaves_a_checkpoint_and_no_lock(cpu_image, killed):
    folder, left = killed
    assert "/workspace/outputs/model.safetensors" in json.loads(left)["write"]
    with Container(cpu_image, folder) as container:
        container.says(TRAINING)
        docker("stop", container.name)
        assert re.search(r"stopped: at step \d+ of \d+; the state is saved", container.logs())
        assert container.ended() not in (0, 137)
    assert json.loads((folder / ".dvc" / "tmp" / "rwlock").read_text()) == {}
    assert list((folder / ".cache" / "training").glob("*.safetensors"))


@pytest.mark.fault(15)
@pytest.mark.parametrize("signal", ["TERM", "INT"])
def test_a_container_resumes_where_a_signal_stopped_the_one_before(cpu_image, killed, signal):
    folder, _ = killed
    steps = []
    for _ in range(2):
        with Container(cpu_image, folder) as container:
            container.says(TRAINING)
            docker("kill", "--signal", signal, container.name)
            assert container.ended() not in (0, 137)
            steps.append([int(step) for step in re.findall(r"at step (\d+)", container.logs())])
    assert steps[1][0] == steps[0][-1]


@pytest.mark.fault(15)
def test_docker_stop_ends_all_workers_with_a_state_and_no_lock_and_another_number_resumes(cpu_image, make_checkout):
    folder = make_checkout(settings={"epochs: 2": "epochs: 10000", "workers: 1": "workers: 2"})
    steps = []
    for workers in (2, 1):
        (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("workers: 2", f"workers: {workers}"))
        with Container(cpu_image, folder) as container:
            container.says(TRAINING)
            docker("stop", container.name)
            assert container.ended() not in (0, 137), "137: something went on, and was killed after ten seconds"
            steps.append([int(step) for step in re.findall(r"at step (\d+)", container.logs())])
        assert json.loads((folder / ".dvc" / "tmp" / "rwlock").read_text()) == {}
        assert list((folder / ".cache" / "training").glob("*.safetensors"))
    assert steps[1][0] == steps[0][-1]


@pytest.mark.fault(24)
def test_a_second_container_on_the_checkout_is_told_busy_and_harms_neither(cpu_image, killed):
    folder, _ = killed
    with Container(cpu_image, folder) as container:
        container.says(TRAINING)
        second = run(cpu_image, folder, check=False)
        assert second.returncode != 0
        # by DVC, or, where DVC took the first one's PID for dead, by the stage's own lock
        assert re.search(r"is busy, it is being blocked by:\n  \(PID |a stage is already running in this folder", second.stderr)
        assert container.running()
        docker("stop", container.name)
        assert re.search(r"stopped: at step \d+ of \d+; the state is saved", container.logs())

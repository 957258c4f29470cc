"""What `train` says besides its result: what would be faster, and what would learn."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.steps import drawn_set


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to give a process fewer CPUs")
@pytest.mark.parametrize(("workers", "lr", "slower", "tutorials"), [(2, 0.001, True, True), (1, 0.01, False, False)])
def test_more_workers_than_cpus_and_the_tutorials_settings_are_named_with_what_to_set(tmp_path, workers, lr, slower, tutorials):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("workers: 1 ", f"workers: {workers} ").replace("lr: 0.001", f"lr: {lr}"))
    drawn_set(64).save(tmp_path / "data" / "dataset.safetensors")
    code = "import os, runpy; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); runpy.run_module('pipeline', run_name='__main__')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, "train"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("2 workers share 1 CPU(s), which is slower than workers: 1\n" in done.stderr) == slower
    assert done.stdout.endswith("this reaches 60 %: dvc exp run -S train.epochs=10 -S train.lr=0.01\n") == tutorials

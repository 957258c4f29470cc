"""A run whose classes have hostile names, and its page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline.weights.export import export
from tests import network_runs
from tests.network_runs import DATA

HOSTILE = '</script><script>window.hostile = 1</script><img src=x onerror="window.hostile = 1">'
CLASSES = (HOSTILE, "<b>ring</b>", *DATA.classes[2:])
HOSTILE_DATA = dataclasses.replace(DATA, classes=CLASSES)


def write(folder: Path) -> Path:
    """Put a run of all test images into run/ in a folder, and its page beside it; the folder."""
    network_runs.write(folder / "run", data=HOSTILE_DATA)
    export(folder / "run", folder / "page.html")
    return folder

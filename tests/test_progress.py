"""How far long work is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from tests.conftest import ROOT

CODE = """
from pipeline.system.progress import progress
with progress("train [/b]\\x1b", 3, "steps") as show:
    for step in (1, 2, 3):
        show(step, f"loss {step}.5")
"""


def test_on_a_terminal_there_is_a_bar_that_ends_with_all_done():
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen([sys.executable, "-c", CODE], cwd=ROOT, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    try:
        while more := os.read(master, 4096):
            shown += more
    except OSError:  # how Linux says that nobody has the terminal open any more
        pass
    os.close(master)
    assert process.wait() == 0
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).strip().splitlines()[-1]
    assert re.fullmatch(r"train \[/b\]� ━+ 3/3 steps 0:00:00 loss 3\.5 *", last), last


def test_elsewhere_there_are_plain_lines():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "train [/b]�: 3/3 steps loss 3.5\n")

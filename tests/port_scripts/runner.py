"""Runs scripts one after the other in one process, each in a folder of its own, and prints what each printed, as JSON."""
import contextlib
import io
import json
import os
import runpy
import sys
import tempfile

import torch

torch.set_num_threads(1)
said = {}
for path in sys.argv[1:]:
    torch.set_default_dtype(torch.float32)
    folder, out = tempfile.mkdtemp(), io.StringIO()
    sys.path.insert(0, os.path.dirname(path))
    sys.modules.pop("utils", None)
    os.chdir(folder)
    environment = dict(os.environ)
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(path, run_name="__main__")
        said[path] = [line for line in out.getvalue().splitlines() if line.startswith("loss")]
    except (Exception, SystemExit) as error:
        said[path] = f"{type(error).__name__}: {error}"
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    torch.set_default_tensor_type("torch.FloatTensor")
    os.environ.clear()
    os.environ.update(environment)
    sys.path.remove(os.path.dirname(path))
print(json.dumps(said))

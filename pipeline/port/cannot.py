"""Rules about what no rewrite of a line helps: packages and parts of PyTorch that only exist for GPUs."""

from __future__ import annotations

import re

import libcst as cst
from libcst import matchers as m

from pipeline.port.guards import why
from pipeline.port.placement import level
from pipeline.port.rules import Answer, Found, Level, rule
from pipeline.port.script import Script

PACKAGES = {
    "triton": "kernels for GPUs: write what they compute with PyTorch's operations, and choose by the device",
    "flash_attn": "attention for GPUs: torch.nn.functional.scaled_dot_product_attention computes the same function on any device",
    "xformers": "attention for GPUs: torch.nn.functional.scaled_dot_product_attention computes the same function on any device",
    "apex": "extensions for GPUs: torch.amp, torch.nn.parallel and torch.optim have what it had",
    "amp_C": "extensions for GPUs: torch.amp and torch.optim have what it had",
    "nvidia.dali": "images decoded on a GPU: torchvision's data sets and transforms in a DataLoader",
    "pynvml": "asks NVIDIA's driver: only ask where there is a GPU",
    "cupy": "arrays on a GPU: NumPy has the same functions",
    "bitsandbytes": "optimizers and weights of 8 bits for GPUs: torch.optim in float32",
    "tensorrt": "runs networks on NVIDIA's GPUs: PyTorch or ONNX Runtime",
    "torch_tensorrt": "compiles for NVIDIA's GPUs: torch.compile",
    "mamba_ssm": "kernels for GPUs: the package's reference functions in PyTorch",
    "pycuda": "kernels for GPUs: write what they compute with PyTorch's operations",
    "deepspeed": "an engine for many GPUs: torch.nn.parallel, or no engine for one process",
}


@rule(
    Answer.CANNOT,
    "imports ",
    ("import triton", None),
    ("from apex import amp", None),
    ("try:\n    import apex\nexcept ImportError:\n    apex = None", "try:\n    import apex\nexcept ImportError:\n    apex = None"),
    ('try:\n    import apex\nexcept ImportError:\n    raise ImportError("install apex")', None),
    on=(cst.Import, cst.ImportFrom),
)
def package(node: cst.Import | cst.ImportFrom, script: Script) -> Found | None:
    if isinstance(node, cst.Import):
        modules = [alias.evaluated_name for alias in node.names]
    else:
        modules = [script.code(node.module)] if node.module and not node.relative else []
    names = [name for name in PACKAGES for module in modules if f"{module}.".startswith(f"{name}.")]
    if isinstance(node, cst.ImportFrom) and modules == ["nvidia"] and "dali" in script.code(node):
        names = ["nvidia.dali"]
    tries = [above for above in script.parents(node) if isinstance(above, cst.Try)]
    tried = [each for each in tries if not re.search(r"\braise\b|exit\(", "".join(script.code(handler) for handler in each.handlers))]
    if not names or tried or (how := level(node, script)) is None:
        return None
    return Found((), how, f"{names[0]}, {PACKAGES[names[0]]}")


@rule(
    Answer.CANNOT,
    "a graph of CUDA's launches: on a CPU call the captured function itself, behind a question for the device",
    ("graph = torch.cuda.CUDAGraph()", None),
    ("step = torch.cuda.make_graphed_callables(step, (x,))", None),
)
def graph(call: cst.Call, script: Script) -> Found | None:
    names = ("torch.cuda.CUDAGraph", "torch.cuda.graph", "torch.cuda.make_graphed_callables", "torch.cuda.graphs.graph")
    how = level(call, script) if script.name(call.func) in names else None
    return how and Found((), how)


@rule(
    Answer.CANNOT,
    "builds an extension for CUDA: it needs a form in PyTorch's operations, or C++ for CPUs",
    ("from torch.utils.cpp_extension import CUDAExtension\nCUDAExtension('a', ['a.cu'])", None),
)
def extension(call: cst.Call, script: Script) -> Found | None:
    name = script.name(call.func)
    sources = name.startswith("torch.utils.cpp_extension.load") and bool(re.search(r"cuda_sources|\.cu['\"]", script.code(call)))
    if not (name == "torch.utils.cpp_extension.CUDAExtension" or sources):
        return None
    how = level(call, script)
    return how and Found((), how)


@rule(
    Answer.CANNOT,
    "runs nvidia-smi, which is only where NVIDIA's driver is: run it only there",
    ('import subprocess\nsubprocess.run(["nvidia-smi"])', None),
    ('os.system("nvidia-smi -q >free")', None),
    ('print("nvidia-smi")', 'print("nvidia-smi")'),
)
def driver(call: cst.Call, script: Script) -> Found | None:
    runs = script.name(call.func).startswith(("subprocess.", "os.system", "os.popen"))
    how = level(call, script) if runs and "nvidia-smi" in script.code(call) else None
    return how and Found((), how)


@rule(
    Answer.CANNOT,
    "text from elsewhere, which is not looked at: it may name a GPU",
    ('exec(open("settings.py").read())', None),
    ('import yaml\nsettings = yaml.safe_load(open("settings.yaml"))', None),
)
def elsewhere(call: cst.Call, script: Script) -> Found | None:
    runs = script.code(call.func) == "exec" or re.fullmatch(r"yaml\.(\w+_)?load", script.name(call.func))
    return Found((), Level.ALONG) if runs else None


@rule(
    Answer.CANNOT,
    "compiles for a GPU as a decorator or transform: the text does not tell what it computes elsewhere",
    ("import numba.cuda\n\n\n@numba.cuda.jit\ndef f():\n    pass", None),
    on=cst.Decorator,
)
def kernel(node: cst.Decorator, script: Script) -> Found | None:
    function = node.decorator.func if m.matches(node.decorator, m.Call()) else node.decorator  # type: ignore[attr-defined]
    return Found(()) if script.name(function).startswith("numba.cuda.") and why(node, script) is None else None

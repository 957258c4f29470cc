"""Rules about numbers that are others than a GPU's: mixed and half precision, TF32, statistics over processes."""

from __future__ import annotations

import re

import libcst as cst
from libcst import matchers as m

from pipeline.port.placement import level
from pipeline.port.rules import DEVICE, ON_GPU, TORCH, Answer, Edit, Found, Level, rule
from pipeline.port.script import Script


@rule(
    Answer.NUMBERS,
    "autocast for CUDA: a CPU computes this in float32 (its autocast means bfloat16); to compare, switch it off on the GPU",
    (
        "with torch.cuda.amp.autocast():\n    pass",
        'with torch.autocast(device.type, enabled=device.type == "cuda"):\n    pass',
    ),
    (
        'with torch.autocast("cuda", dtype=torch.bfloat16):\n    pass',
        'with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):\n    pass',
    ),
    ("with torch.autocast(device.type):\n    pass", "with torch.autocast(device.type):\n    pass"),
    (
        "x = x.cuda()\nwith torch.cuda.amp.autocast(args.amp):\n    pass",
        'x = x.to(device)\nwith torch.autocast(device.type, enabled=device.type == "cuda" and (args.amp)):\n    pass',
    ),
    (
        'device = "cuda"\nwith torch.cuda.amp.autocast():\n    pass',
        'with torch.autocast(torch.device(device).type, enabled=torch.device(device).type == "cuda"):\n    pass',
    ),
)
def autocast(call: cst.Call, script: Script) -> Found | None:
    name = script.name(call.func)
    if name not in ("torch.cuda.amp.autocast", "torch.cuda.amp.autocast_mode.autocast", "torch.autocast", "torch.amp.autocast"):
        return None
    kind = None if "cuda" in name else script.argument(call, "device_type", 0)
    if "cuda" not in name and (kind is None or script.string(kind.value) != "cuda"):
        return None
    return _amp(call, script, "autocast", kind, 0 if "cuda" in name else None)


@rule(
    Answer.NUMBERS,
    "a scaler of float16's gradients: without float16 it must scale nothing",
    ("scaler = torch.cuda.amp.GradScaler()", 'scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")'),
)
def scaler(call: cst.Call, script: Script) -> Found | None:
    name = script.name(call.func)
    if name not in ("torch.cuda.amp.GradScaler", "torch.amp.GradScaler"):
        return None
    kind = None if "cuda" in name else script.argument(call, "device", 0)
    if kind is not None and script.string(kind.value) != "cuda":
        return None
    return _amp(call, script, "amp.GradScaler", kind)


def _amp(call: cst.Call, script: Script, name: str, kind: cst.Arg | None, position: int | None = None) -> Found | None:
    enabled, how = script.argument(call, "enabled", position), level(call, script)
    asked = script.code(enabled.value) if enabled else "True"
    if how is None or asked == "False" or ".type" in asked:
        return None
    words = [script.code(arg).rstrip(", ") for arg in call.args if arg not in (kind, enabled)]
    words = [f"{DEVICE}.type", *words, f"enabled={ON_GPU}" + (f" and ({asked})" if asked != "True" else "")]
    how = how if asked == "True" else Level.ALONG  # where it is asked for, it warns on a CPU, and does nothing
    return Found(script.replaced(call, f"{TORCH}.{name}({', '.join(words)})"), how)


@rule(
    Answer.NUMBERS,
    "half precision: slow on a CPU, where some operations lack it, and rounded in other places; float32 there is nearer to the truth",
    ("model = model.half()", 'model = model.to(torch.float16 if device.type == "cuda" else torch.float32)'),
    ("model = model.bfloat16()", 'model = model.to(torch.bfloat16 if device.type == "cuda" else torch.float32)'),
    ("def run(dtype=torch.float16):\n    pass", 'def run(dtype=torch.float16 if device.type == "cuda" else torch.float32):\n    pass'),
    ("x = x.to(torch.float16)", 'x = x.to(torch.float16 if device.type == "cuda" else torch.float32)'),
    (
        "x = torch.zeros(2, dtype=torch.half)",
        'x = torch.zeros(2, dtype=torch.half if device.type == "cuda" else torch.float32)',
    ),
    on=(cst.Call, cst.Attribute),
)
def half(node: cst.Call | cst.Attribute, script: Script) -> Found | None:
    if isinstance(node, cst.Call):
        wanted = m.Call(func=m.Attribute(attr=m.OneOf(m.Name("half"), m.Name("bfloat16"))), args=[])
        if not m.matches(node, wanted) or (how := level(node, script, _heard(script.code(node.func)))) is None:
            return None
        if m.matches(script.parent(node) or node, m.Attribute(attr=m.OneOf(m.Name("to"), m.Name("float")))):
            return None  # rounds on purpose, and goes back
        assert isinstance(node.func, cst.Attribute)
        start, (_, end) = script.span(node.func.attr)[0], script.span(node)
        short = "float16" if node.func.attr.value == "half" else "bfloat16"
        return Found((Edit(start, end, f"to({TORCH}.{short} if {ON_GPU} else {TORCH}.float32)"),), how)
    if script.name(node) not in ("torch.float16", "torch.half", "torch.bfloat16"):
        return None
    outer = script.parent(node)
    call = script.parent(outer) if isinstance(outer, cst.Arg) else None
    moved = isinstance(call, cst.Call) and not re.search("autocast|MixedPrecision", script.code(call.func))
    if not moved and not isinstance(outer, (cst.Assign, cst.AnnAssign, cst.Param)):
        return None
    how = level(node, script, _heard(script.name(node)))
    return how and Found(script.chosen(node, f"{TORCH}.float32"), how)


def _heard(name: str) -> Level:
    """A CPU has bfloat16 as a GPU has it, and all operations with it."""
    return Level.NOTE if name.endswith("bfloat16") else Level.BOUND


@rule(
    Answer.NUMBERS,
    "lets a GPU round or choose kernels as it likes, and does nothing on a CPU; for the nearest numbers switch it off on the GPU",
    ("torch.backends.cuda.matmul.allow_tf32 = True", None),
    ("torch.backends.cudnn.benchmark = True", None),
    ('torch.set_float32_matmul_precision("high")', None),
    on=(cst.Assign, cst.Call),
)
def kernels(node: cst.Assign | cst.Call, script: Script) -> Found | None:
    if isinstance(node, cst.Call):
        return Found((), Level.ALONG) if script.name(node.func) == "torch.set_float32_matmul_precision" else None
    name = script.name(node.targets[0].target)
    flags = name.startswith("torch.backends.") and name.endswith(("allow_tf32", "benchmark", "reduced_precision_reduction"))
    return Found((), Level.ALONG) if flags and script.code(node.value) == "True" else None


@rule(
    Answer.NUMBERS,
    "statistics over the batches of all GPUs; elsewhere each process takes its own, which is the same for one process only",
    (
        "model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)",
        'model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) if device.type == "cuda" else model',
    ),
    ("norm = torch.nn.SyncBatchNorm(8)", 'norm = torch.nn.SyncBatchNorm(8) if device.type == "cuda" else torch.nn.BatchNorm2d(8)'),
)
def sync_batch_norm(call: cst.Call, script: Script) -> Found | None:
    name = script.name(call.func)
    if not name.startswith("torch.nn.") or "SyncBatchNorm" not in name or (how := level(call, script)) is None:
        return None
    if name.endswith("convert_sync_batchnorm"):
        return Found(script.chosen(call, script.code(call.args[0].value)), how) if call.args else None
    plain = f"{TORCH}.nn.BatchNorm2d({', '.join(script.code(arg).rstrip(', ') for arg in call.args)})"
    return Found(script.chosen(call, plain), how)

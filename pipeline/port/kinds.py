"""Rules about what kind a tensor is: types of CUDA, and pinned memory."""

from __future__ import annotations

import re

import libcst as cst
from libcst import matchers as m

from pipeline.port.guards import follows_a_device, implies_gpu
from pipeline.port.placement import level
from pipeline.port.rules import DEVICE, ON_GPU, TORCH, Answer, Edit, Found, Level, rule
from pipeline.port.script import Script

_TYPES = {"Float": "float32", "Double": "float64", "Long": "int64", "Int": "int32", "Short": "int16", "Byte": "uint8", "Bool": "bool"}
_TENSOR = re.compile(r"torch\.cuda\.(\w+)Tensor$")


@rule(
    Answer.SAME,
    "a tensor type of CUDA: the CPU's type, moved to the script's device",
    ("x = torch.cuda.FloatTensor(2, 3)", "x = torch.FloatTensor(2, 3).to(device)"),
    ("x = x.type(torch.cuda.LongTensor)", "x = x.to(device, torch.int64)"),
    (
        'torch.set_default_tensor_type("torch.cuda.FloatTensor")',
        'if device.type == "cuda":\n    torch.set_default_tensor_type("torch.cuda.FloatTensor")',
    ),
    (
        "cuda = torch.cuda.is_available()\nif cuda:\n    x = x.cuda().type(torch.cuda.FloatTensor)\nz = torch.load('z.pt')",
        "if cuda:\n    x = x.to(device).to(device, torch.float32)\n",
    ),
    (
        "Tensor = torch.cuda.FloatTensor if torch.cuda.is_available() else torch.FloatTensor\nnet.cuda()",
        'Tensor = torch.cuda.FloatTensor if device.type == "cuda" else torch.FloatTensor\nnet.to(device)',
    ),
    ("dtype = torch.cuda.FloatTensor", 'dtype = torch.cuda.FloatTensor if device.type == "cuda" else torch.FloatTensor'),
    on=(cst.Attribute, cst.Name, cst.SimpleString),
)
def tensor_type(node: cst.BaseExpression, script: Script) -> Found | None:
    name = script.string(node) or "" if isinstance(node, cst.SimpleString) else script.name(node)
    outer = script.parent(node)
    if not (match := _TENSOR.match(name)) or isinstance(outer, (cst.ImportAlias, cst.Attribute)):
        return None
    if isinstance(outer, cst.IfExp) and outer.body is node and implies_gpu(outer.test, script):
        return Found(script.replaced(outer.test, ON_GPU), Level.ALONG) if not follows_a_device(outer.test, script) else None
    call = script.parent(outer) if isinstance(outer, cst.Arg) else outer
    typed = isinstance(call, cst.Call) and m.matches(call.func, m.Attribute(attr=m.Name("type")))
    if (how := level(node, script) or (Level.ALONG if typed else None)) is None:
        return None
    if isinstance(outer, cst.Call):
        end = script.span(outer)[1]
        return Found((*script.replaced(node, f"{TORCH}.{match[1]}Tensor"), Edit(end, end, f".to({DEVICE})")), how)
    if isinstance(call, cst.Call):
        if script.name(call.func) == "torch.set_default_tensor_type":
            return Found(script.only_on_gpu(call), how)
        if typed and match[1] in _TYPES:
            assert isinstance(call.func, cst.Attribute)
            edit = Edit(script.span(call.func.attr)[0], script.span(call)[1], f"to({DEVICE}, {TORCH}.{_TYPES[match[1]]})")
            return Found((edit,), how)
        return None  # isinstance and the like: true of no tensor of a CPU
    if isinstance(node, cst.SimpleString):
        return None
    return Found(script.chosen(node, f"{TORCH}.{match[1]}Tensor"), how)


@rule(
    Answer.SAME,
    "memory is pinned for copies to a GPU, and cannot be without one",
    (
        "net.cuda()\nloader = torch.utils.data.DataLoader(data, pin_memory=True)",
        'net.to(device)\nloader = torch.utils.data.DataLoader(data, pin_memory=device.type == "cuda")',
    ),
    ("x = torch.empty(2, pin_memory=True)", 'x = torch.empty(2, pin_memory=device.type == "cuda")'),
    ("x = x.pin_memory()", 'x = x.pin_memory() if device.type == "cuda" else x'),
)
def pinned(call: cst.Call, script: Script) -> Found | None:
    arg = script.argument(call, "pin_memory")
    if arg is not None and script.code(arg.value) == "True":
        tensor = script.name(call.func) in (
            "torch.empty",
            "torch.zeros",
            "torch.ones",
            "torch.full",
            "torch.tensor",
            "torch.randn",
            "torch.rand",
        )
        how = level(call, script, Level.BOUND if tensor else Level.ALONG)
        return how and Found(script.replaced(arg.value, ON_GPU), how)
    if m.matches(call, m.Call(func=m.Attribute(attr=m.Name("pin_memory")))) and not script.name(call.func):
        assert isinstance(call.func, cst.Attribute)
        how = level(call, script)
        return how and Found(script.chosen(call, script.code(call.func.value)), how)
    return None

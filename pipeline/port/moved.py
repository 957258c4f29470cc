"""Rules about what fails on any device, because PyTorch has moved on since the script was written."""

from __future__ import annotations

import re

import libcst as cst
from libcst import matchers as m

from pipeline.port.rules import Answer, Edit, Found, Level, rule
from pipeline.port.script import Script


@rule(
    Answer.MOVED,
    "a loss is a number without dimensions since PyTorch 0.4: .item()",
    ("loss = criterion(x, y)\ntotal += loss.data[0]", "loss = criterion(x, y)\ntotal += loss.item()"),
    ("first = weights.data[0]", None),
    on=cst.Subscript,
)
def item(node: cst.Subscript, script: Script) -> Found | None:
    data = node.value
    if not m.matches(node, m.Subscript(value=m.Attribute(attr=m.Name("data")), slice=[m.SubscriptElement(m.Index(m.Integer("0")))])):
        return None
    assert isinstance(data, cst.Attribute)
    code = script.code(data.value)
    values = [value for value in script.values.get(code, []) if isinstance(value, cst.Call)]
    scalar = re.search(r"loss|cost|err", code, re.IGNORECASE) or any(re.search("loss|criterion", script.code(v.func), re.I) for v in values)
    if not scalar:
        return Found((), Level.ALONG, "; whether this is such a number the text does not tell")
    return Found((Edit(script.span(data.value)[1], script.span(node)[1], ".item()"),))


@rule(
    Answer.MOVED,
    "the rows of a transposed comparison do not lie in one piece: .reshape",
    ("pred = pred.t()\ncorrect[:k].view(-1).float()", "pred = pred.t()\ncorrect[:k].reshape(-1).float()"),
    ("x[:2].view(-1)", "x[:2].view(-1)"),
)
def view(call: cst.Call, script: Script) -> Found | None:
    sliced = m.Subscript(slice=[m.SubscriptElement(m.Slice()), m.ZeroOrMore()])
    if (
        not m.matches(call, m.Call(func=m.Attribute(value=sliced, attr=m.Name("view")), args=[m.Arg(m.UnaryOperation())]))
        or ".t()" not in script.text
    ):
        return None
    assert isinstance(call.func, cst.Attribute)
    return Found(script.replaced(call.func.attr, "reshape"))


@rule(
    Answer.MOVED,
    "volatile has no effect since PyTorch 0.4, and memory is kept for gradients: compute under torch.no_grad()",
    ("from torch.autograd import Variable\nx = Variable(x, volatile=True)", "from torch.autograd import Variable\nx = Variable(x)"),
)
def volatile(call: cst.Call, script: Script) -> Found | None:
    arg = script.argument(call, "volatile")
    if arg is None or not script.name(call.func).endswith("Variable"):
        return None
    return Found(script.removed(arg, call))


@rule(
    Answer.MOVED,
    "iterators have no method next: next(...)",
    ("x, y = iter(loader).next()", "x, y = next(iter(loader))"),
    ("batches = iter(loader)\nx, y = batches.next()", "batches = iter(loader)\nx, y = next(batches)"),
    ("x = node.next()", "x = node.next()"),
)
def following(call: cst.Call, script: Script) -> Found | None:
    if not m.matches(call, m.Call(func=m.Attribute(attr=m.Name("next")), args=[])):
        return None
    assert isinstance(call.func, cst.Attribute)
    receiver = call.func.value
    iterator = m.Call(func=m.Name("iter"))
    values = script.values.get(script.code(receiver), [])
    if not m.matches(receiver, iterator) and not any(m.matches(value, iterator) for value in values if value):
        return None
    return Found(script.replaced(call, f"next({script.code(receiver)})"))


@rule(
    Answer.MOVED,
    "a transform that torchvision has renamed",
    (
        "from torchvision import transforms\ntransforms.Scale(8)",
        "from torchvision import transforms\ntransforms.Resize(8)",
    ),
    on=cst.Attribute,
)
def renamed(node: cst.Attribute, script: Script) -> Found | None:
    new = {"Scale": "Resize", "RandomSizedCrop": "RandomResizedCrop"}.get(node.attr.value)
    known = script.name(node).startswith("torchvision.transforms.")
    return Found(script.replaced(node.attr, new)) if new and known else None


@rule(
    Answer.MOVED,
    "torchvision's range= of pictures is value_range= since 0.13",
    (
        "from torchvision.utils import save_image\nsave_image(x, 'a.png', range=(-1, 1))",
        "from torchvision.utils import save_image\nsave_image(x, 'a.png', value_range=(-1, 1))",
    ),
)
def picture(call: cst.Call, script: Script) -> Found | None:
    arg = script.argument(call, "range") if script.name(call.func).startswith("torchvision.utils.") else None
    return Found(script.replaced(arg.keyword, "value_range")) if arg and arg.keyword else None


@rule(
    Answer.MOVED,
    "torch._six is gone since PyTorch 2: Python has its names, and inf is in math",
    ("from torch._six import inf", "from math import inf"),
    ("from torch._six import string_classes", None),
    on=cst.ImportFrom,
)
def six(node: cst.ImportFrom, script: Script) -> Found | None:
    if not node.module or script.code(node.module) != "torch._six":
        return None
    return Found(script.replaced(node.module, "math") if script.code(node).endswith("import inf") else ())

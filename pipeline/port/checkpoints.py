"""Rules about files of weights: where they are loaded to, whose names they have, and what PyTorch loads at all."""

from __future__ import annotations

import re

import libcst as cst
from libcst import matchers as m

from pipeline.port.guards import Guard, why
from pipeline.port.placement import target
from pipeline.port.rules import DEVICE, Answer, Edit, Found, Level, rule
from pipeline.port.script import Script


@rule(
    Answer.SAME,
    "torch.load puts a GPU's tensors back on that GPU, and fails where it is missing: say where they go with map_location",
    ('weights = torch.load("a.pt")', 'weights = torch.load("a.pt", map_location=device)'),
    (
        'weights = torch.load("a.pt", map_location=lambda storage, place: storage.cuda())',
        'weights = torch.load("a.pt", map_location=device)',
    ),
    (
        'weights = torch.load("a.pt", map_location=lambda storage, place: storage.cuda(1))',
        'weights = torch.load("a.pt", map_location=device)',
    ),
    (
        'place = {"cuda:0": "cuda:%d" % rank}\nweights = torch.load("a.pt", map_location=place)',
        'weights = torch.load("a.pt", map_location=place if device.type == "cuda" else device)',
    ),
    ('weights = torch.load("a.pt", map_location="cpu")', 'weights = torch.load("a.pt", map_location="cpu")'),
)
def checkpoint(call: cst.Call, script: Script) -> Found | None:
    if script.name(call.func) not in ("torch.load", "torch.jit.load", "torch.hub.load_state_dict_from_url"):
        return None
    if any(arg.star for arg in call.args) or why(call, script) is Guard.GPU:
        return None
    place = script.argument(call, "map_location", None if script.name(call.func).startswith("torch.hub") else 1)
    if place is not None:
        if m.matches(place.value, m.Lambda(body=m.Call(func=m.Attribute(attr=m.Name("cuda"))))):
            numbers = cst.ensure_type(cst.ensure_type(place.value, cst.Lambda).body, cst.Call).args
            return Found(script.replaced(place.value, target(numbers[0].value, script) if numbers else DEVICE))
        if any(isinstance(value, cst.Dict) for value in (place.value, *script.values.get(script.code(place.value), []))):
            return Found(script.chosen(place.value, DEVICE))
        return Found(script.replaced(place.value, DEVICE)) if script.code(place.value) == "None" else None
    outer = script.parent(call)  # a tuple is no checkpoint, and what nobody keeps is none either
    other = isinstance(outer, cst.Expr) or m.matches(outer or call, m.Assign(targets=[m.AssignTarget(m.Tuple())]))
    return Found(script.added(call, f"map_location={DEVICE}"), Level.ALONG if other else Level.BOUND)


@rule(
    Answer.SAME,
    "a checkpoint of a wrapped model has names that begin with `module.`, and the model is only wrapped where there are GPUs",
    (
        "if torch.cuda.device_count() > 1:\n    model = torch.nn.DataParallel(model)\nmodel.load_state_dict(state)",
        "if torch.cuda.device_count() > 1:\n    model = torch.nn.DataParallel(model)\n"
        'getattr(model, "module", model).load_state_dict({key.removeprefix("module."): value for key, value in (state).items()})',
    ),
)
def prefixes(call: cst.Call, script: Script) -> Found | None:
    if not m.matches(call, m.Call(func=m.Attribute(value=m.Name(), attr=m.Name("load_state_dict")), args=[m.Arg(), m.ZeroOrMore()])):
        return None
    assert isinstance(call.func, cst.Attribute)
    receiver = script.code(call.func.value)
    wraps = [
        value
        for value in script.values.get(receiver, [])
        if isinstance(value, cst.Call) and script.name(value.func).endswith("DataParallel")
    ]
    if not wraps or not all(why(value, script) is Guard.GPU for value in wraps) or "removeprefix" in script.code(call):
        return None
    start, end = script.span(call.args[0].value)
    clean = Edit(start, start, '{key.removeprefix("module."): value for key, value in ('), Edit(end, end, ").items()}")
    return Found((*script.replaced(call.func.value, f'getattr({receiver}, "module", {receiver})'), *clean))


@rule(
    Answer.MOVED,
    "loads a whole module, which PyTorch refuses since 2.6: save its state_dict, or give weights_only=False if you trust the file",
    ('model = torch.load("a.pt", map_location="cpu")\nmodel.eval()', None),
    ('state = torch.load("a.pt", map_location="cpu")\nstate["epoch"]', 'state = torch.load("a.pt", map_location="cpu")\nstate["epoch"]'),
    ('state = torch.load("a.pt", map_location="cpu")\nmodel = state["net"]\nmodel.eval()', None),
    on=cst.Assign,
)
def whole_module(node: cst.Assign, script: Script) -> Found | None:
    if not isinstance(node.value, cst.Call) or script.name(node.value.func) != "torch.load" or script.argument(node.value, "weights_only"):
        return None
    name = re.escape(script.code(node.targets[0].target))
    names = [name, *(re.escape(taken) for taken in re.findall(rf"^ *([\w.]+) *= *{name}\[", script.text, re.MULTILINE))]
    return Found() if re.search(rf"(?<![\w.])({'|'.join(names)})\.(eval|train|parameters|forward|state_dict)\(", script.text) else None

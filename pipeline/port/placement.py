"""Rules about where tensors and modules are: `.cuda()`, names of devices, and what demands a GPU."""

from __future__ import annotations

import re

import libcst as cst
from libcst import matchers as m

from pipeline.port.device import device_value, named, takes_devices
from pipeline.port.guards import Guard, implies_gpu, why
from pipeline.port.rules import DEVICE, DEVICE_OF, OFF_GPU, ON_GPU, TORCH, Answer, Edit, Found, Level, rule
from pipeline.port.script import Script


def level(node: cst.CSTNode, script: Script, otherwise: Level = Level.BOUND) -> Level | None:
    """How much a line matters that fails without a GPU; None where it is only reached with one."""
    guard = why(node, script)
    return None if guard is Guard.GPU else Level.ASKED if guard is Guard.ASKED else otherwise


_ASKED = (
    'parser.add_argument("-gpu", action="store_true")\nif args.gpu:\n    x.cuda()',
    'parser.add_argument("--c", dest="gpu", action="store_true")\nif args.gpu:\n    x.cuda()',
    'parser.add_argument("--fast", action="store_true")\nargs.fast = False\nif args.fast:\n    x.cuda()',
    'parser.add_argument("--gpu", type=int)\nargs.gpu = gpu\nif args.gpu is not None:\n    x.cuda(args.gpu)',
)
"""Lines that only run where an option that is off asks for it."""
_JOINED = 'def f():\n    if not is_dist_avail_and_initialized():\n        return\n    torch.zeros(1, device="cuda")'
"""A line that only runs where processes were joined."""


@rule(
    Answer.SAME,
    ".cuda() fails without a GPU: move to the script's device, .to(device)",
    ("model = net.cuda()", "model = net.to(device)"),
    ("x = x.cuda(non_blocking=True)", "x = x.to(device, non_blocking=True)"),
    ("x = x.cuda(0)", "x = x.to(device)"),
    ("y = y.cuda(x.get_device())", "y = y.to(x.device)"),
    (
        "x.cuda(args.gpu)",
        'return torch.device(index) if index is not None and device.type == "cuda" else device\n\nx.to(device_of(args.gpu))',
    ),
    *((text, text) for text in _ASKED),
    ("def cuda(x):\n    return x\n\nx = cuda(x)  # .cuda()", "def cuda(x):\n    return x\n\nx = cuda(x)  # .cuda()"),
)
def cuda_call(call: cst.Call, script: Script) -> Found | None:
    if not m.matches(call, m.Call(func=m.Attribute(attr=m.Name("cuda")))) or script.name(call.func).startswith("torch."):
        return None
    if script.name(call.func) and m.matches(call, m.Call(args=[m.Arg(keyword=None, value=~m.Integer()), m.ZeroOrMore()])):
        return None  # a function of another module's
    assert isinstance(call.func, cst.Attribute)
    if _own(call.func.value, script):
        return None
    arg = script.argument(call, "device", 0)
    rest = [script.code(other.value if index and not other.keyword else other) for index, other in enumerate(call.args) if other is not arg]
    if len(call.args) == 2 and not call.args[1].keyword:
        rest = [f"non_blocking={script.code(call.args[1].value)}"]
    text = ", ".join([target(arg.value, script) if arg else DEVICE, *rest])
    guard = why(call, script)
    edit = Edit(script.span(call.func.attr)[0], script.span(call)[1], f"to({text})")
    return Found((edit,), Level.ALONG if guard is Guard.GPU else Level.ASKED if guard else Level.BOUND)


def _own(receiver: cst.BaseExpression, script: Script) -> bool:
    """Whether `.cuda()` is a method of the user's own class, or the one that an own method extends."""
    classes = {
        node.name.value
        for node in script.nodes
        if isinstance(node, cst.ClassDef)
        for body in node.body.body
        if isinstance(body, cst.FunctionDef) and body.name.value == "cuda"
    }
    if m.matches(receiver, m.Call(func=m.Name("super"))):
        return True
    if m.matches(receiver, m.Name("self")):
        return any(isinstance(above, cst.ClassDef) and above.name.value in classes for above in script.parents(receiver))
    values = [receiver, *(value for value in script.values.get(script.code(receiver), []) if value)]
    return any(isinstance(value, cst.Call) and script.code(value.func) in classes for value in values)


def target(value: cst.BaseExpression, script: Script) -> str:
    """What the argument of `.cuda()` names, as an argument of `.to()`."""
    code = script.code(value)
    if code == "None" or script.name(getattr(value, "func", value)) == "torch.cuda.current_device":
        return DEVICE
    if code.isdecimal():
        return named(f"cuda:{code}")
    if m.matches(value, m.Call(func=m.Attribute(attr=m.Name("get_device")), args=[])):
        return code.removesuffix(".get_device()") + ".device"
    known = [device_value(each, script) for each in script.values.get(code, []) if each]
    return code if known and all(each and each.is_device for each in known) else f"{DEVICE_OF}({code})"


@rule(
    Answer.SAME,
    "names a GPU: ask for the device once",
    (
        'device = torch.device("cuda")',
        'device = torch.device(os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))',
    ),
    ('model.to("cuda:0")', "model.to(device)"),
    ('x = torch.zeros(2, device="cuda")', "x = torch.zeros(2, device=device)"),
    ('config = {"lr": 0.1, "device": "cuda"}', 'config = {"lr": 0.1, "device": str(device)}'),
    ('def train(gpu_device="cuda"):\n    pass', "def train(gpu_device=str(device)):\n    pass"),
    ('print("cuda")', 'print("cuda")'),
    ('device = "cuda" if torch.cuda.is_available() else "cpu"', 'device = "cuda" if torch.cuda.is_available() else "cpu"'),
    ('kind = "cuda" if "cuda" in device else "cpu"', 'kind = "cuda" if "cuda" in device else "cpu"'),
    ('device_type = "cuda"', "device_type = device.type"),
    ("x = torch.zeros(2, device=torch.device(gpu))", "x = torch.zeros(2, device=device_of(gpu))"),
    ('place = "cuda:{}".format(args.gpu)', 'place = str(device_of("cuda:{}".format(args.gpu)))'),
    (
        'self.device = torch.device("cuda") if self.gpus else torch.device("cpu")',
        'self.device = device if self.gpus else torch.device("cpu")',
    ),
    ('self.device = "cuda" if self.gpus else "cpu"', 'self.device = str(device) if self.gpus else "cpu"'),
    (_JOINED, _JOINED),
    ('places = ["cuda:0", "cuda:1"]', 'places = [str(device), str(device_of("cuda:1"))]'),
    (
        'device = "cuda"\nx.cuda(1)',
        'return torch.device(index) if index is not None and torch.device(device).type == "cuda" else torch.device(device)\n',
    ),
    ('places = ["cpu", "cuda"]', 'places = ["cpu", "cuda"]'),
    ('steps = [ToDevice("cuda:0")]', "steps = [ToDevice(str(device))]"),
    on=(cst.Call, cst.SimpleString, cst.FormattedString, cst.BinaryOperation, cst.IfExp),
)
def device_name(node: cst.BaseExpression, script: Script) -> Found | None:
    value = device_value(node, script)
    if value is None or value.chosen or (not value.is_device and not _names_a_place(node, script)):
        return None
    outer = script.parent(node)
    while outer is not None and not isinstance(outer, cst.BaseStatement):
        if isinstance(outer, cst.BaseExpression) and device_value(outer, script):
            return None  # the larger one is looked at
        if isinstance(outer, cst.Comparison):
            return None  # a question, and no place
        outer = script.parent(outer)
    if value.falls_back:
        return Found(script.replaced(node, value.rewritten(node, script)), Level.ALONG)
    if value.constant and _KIND.search(script.code(script.parent(node) or node).split("=")[0]):
        edits = script.replaced(node, f"{DEVICE}.type")
    else:
        edits = script.replaced(node, value.rewritten(node, script))
    how = level(node, script)
    if how is Level.BOUND and isinstance(script.parent(node), cst.Arg) and not value.is_device and not takes_devices(node, script):
        return Found(edits, Level.NOTE, "; what this call does with it the text does not tell") if _imports_torch(script) else None
    return how and Found(edits, how)


def _imports_torch(script: Script) -> bool:
    return bool(re.search(r"^\s*(import|from) torch\b", script.text, re.MULTILINE))


_PLACES = re.compile(r"device|map_location", re.IGNORECASE)
_KIND = re.compile(r"device_?type\s*$", re.IGNORECASE)


def _names_a_place(node: cst.CSTNode, script: Script) -> bool:
    """Whether a string stands where a device is meant."""
    place, outer = node, script.parent(node)
    while isinstance(outer, cst.IfExp) and place is not outer.test:
        place, outer = outer, script.parent(outer)
    if isinstance(outer, cst.Arg):
        call = script.parent(outer)
        assert isinstance(call, (cst.Call, cst.ClassDef))
        if outer.keyword or isinstance(call, cst.ClassDef):
            return bool(outer.keyword and _PLACES.search(outer.keyword.value) and outer.keyword.value != "device_type")
        if script.name(call.func) in ("torch.load", "torch.jit.load"):
            return call.args.index(outer) == 1
        return bool(re.search(r"(^|\.)to$|device$", script.code(call.func), re.IGNORECASE)) or script.name(call.func) == "torch.Generator"
    if isinstance(outer, cst.DictElement):
        settings = isinstance(script.parent(script.parent(outer) or outer), (cst.Assign, cst.AnnAssign, cst.DictElement, cst.Return))
        return settings and outer.value is place and bool(_PLACES.search(script.code(outer.key)))
    if isinstance(outer, cst.Element):
        return "cuda:" in script.code(node) and isinstance(script.parent(script.parent(outer) or outer), cst.Assign)
    if isinstance(outer, cst.Assign):
        return "cuda:" in script.code(node) or any(_PLACES.search(script.code(target)) for target in outer.targets)
    if isinstance(outer, cst.AnnAssign):
        return bool(_PLACES.search(script.code(outer.target)))
    return isinstance(outer, cst.Param) and bool(_PLACES.search(outer.name.value))


@rule(
    Answer.SAME,
    "the option's default is a GPU: name another when you start the script, or let the default be what the machine has",
    (
        'parser.add_argument("--device", default="cuda")',
        'parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")',
    ),
)
def option(call: cst.Call, script: Script) -> Found | None:
    if not m.matches(call, m.Call(func=m.Attribute(attr=m.Name("add_argument")))):
        return None
    names = [script.string(arg.value) or "" for arg in call.args if not arg.keyword]
    default = script.argument(call, "default")
    if default is None or not any(_PLACES.search(name) for name in names) or not (script.string(default.value) or "").startswith("cuda"):
        return None
    _, end = script.span(default.value)
    return Found((Edit(end, end, f' if {TORCH}.cuda.is_available() else "cpu"'),), Level.NOTE)


@rule(
    Answer.SAME,
    "says that there is a GPU, whether there is one or not: ask",
    ("use_cuda = True", 'use_cuda = device.type == "cuda"'),
    ("verbose = True", "verbose = True"),
    ("if torch.cuda.is_available():\n    use_cuda = True", "if torch.cuda.is_available():\n    use_cuda = True"),
    on=cst.Assign,
)
def flag(node: cst.Assign, script: Script) -> Found | None:
    target = script.code(node.targets[0].target)
    named_so = re.fullmatch(r"(\w+\.)*_?(use_?|with_?|on_?)?(cuda|gpu)", target, re.IGNORECASE)
    how = level(node, script) if named_so and script.code(node.value) == "True" else None
    return how and Found(script.replaced(node.value, ON_GPU), how)


@rule(
    Answer.SAME,
    "the script refuses to run without a GPU: let it refuse only where one was asked for",
    ("assert torch.cuda.is_available()", 'assert device.type != "cuda" or torch.cuda.is_available()'),
    (
        'if not torch.cuda.is_available():\n    raise SystemExit("no GPU")',
        'if device.type == "cuda" and not torch.cuda.is_available():\n    raise SystemExit("no GPU")',
    ),
    ("def init_distributed():\n    assert torch.cuda.is_available()", "def init_distributed():\n    assert torch.cuda.is_available()"),
    on=(cst.Assert, cst.If),
)
def demand(node: cst.Assert | cst.If, script: Script) -> Found | None:
    start = script.span(node.test)[0]
    if not re.search("is_available|device_count|use_cuda", script.code(node.test)):
        return None
    if isinstance(node, cst.Assert):
        how = level(node, script) if implies_gpu(node.test, script) and ".type" not in script.code(node.test) else None
        return how and Found((Edit(start, start, f"{OFF_GPU} or "),), how)
    if not isinstance(node.test, cst.UnaryOperation) or not isinstance(node.test.operator, cst.Not):
        return None
    for above in script.parents(node):
        named = re.search("cuda|gpu|device", script.code(above.params) + above.name.value) if isinstance(above, cst.FunctionDef) else None
        if named or isinstance(above, cst.If):
            return None  # it was asked for one
    last = node.body.body[-1]
    ends = last.body[-1] if isinstance(last, cst.SimpleStatementLine) else last
    quits = isinstance(ends, cst.Raise) or bool(re.search(r"\b(sys\.|os\._)?exit\(", script.code(ends)))
    return Found((Edit(start, start, f"{ON_GPU} and "),)) if quits and implies_gpu(node.test.expression, script) else None

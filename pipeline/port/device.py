"""The one place where a ported script asks for its device: what names a device, which binding of the script is asked, and a new one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import libcst as cst
from libcst import matchers as m
from libcst import metadata

from pipeline.port.guards import follows_a_device, implies_gpu, implies_no_gpu
from pipeline.port.rules import CLOCK, DEVICE, DEVICE_OF, NULL, OFF_GPU, ON_GPU, TORCH, Edit, Finding
from pipeline.port.script import Script

HELPER = '''def device_of(index=None):
    """The GPU of a number or name where the device is a GPU, else the device."""
    return {torch}.device(index) if index is not None and {on_gpu} else {device}
'''
STAND_IN = '''class CpuEvent:
    """What torch.cuda.Event is on a GPU: a moment, and the milliseconds between two."""

    def record(self, stream=None):
        self.seconds = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1000 * (end.seconds - self.seconds)
'''
_NAMED = re.compile("\0(cuda[:0-9]*)\0")


def named(constant: str) -> str:
    """The placeholder of a device that the script names, `cuda:1`."""
    return f"\0{constant}\0"


@dataclass(frozen=True)
class Value:
    """An expression that names a device."""

    is_device: bool
    """Whether it is a `torch.device`, and no string."""
    default: str = ""
    """The code of the GPU's name."""
    constant: str = ""
    """That name, where it is a plain string."""
    falls_back: bool = False
    """Whether it names the CPU where there is no GPU."""
    chosen: bool = False
    """Whether the text does not say what it names: an option, a setting."""

    def rewritten(self, node: cst.CSTNode, script: Script) -> str:
        """The script's device in the place of this one."""
        asked = DEVICE if self.falls_back else named(self.constant) if self.constant else f"{DEVICE_OF}({self.default})"
        return asked if self.is_device or takes_devices(node, script) else f"str({asked})"


def takes_devices(node: cst.CSTNode, script: Script) -> bool:
    """Whether a `torch.device` may stand where this string does: in a call of PyTorch's or of a method."""
    outer = script.parent(node)
    call = script.parent(outer) if isinstance(outer, cst.Arg) else None
    if not isinstance(call, cst.Call):
        return False
    return script.name(call.func).startswith("torch.") or (isinstance(call.func, cst.Attribute) and not script.name(call.func))


def numbers_a_gpu(node: cst.BaseExpression, script: Script) -> bool:
    """Whether an expression is the number of a GPU, by its name."""
    code = script.code(node)
    numbered = re.fullmatch(r"(\w+\.)*((local_)?rank|gpu(_id|_index)?|(gpu_ids|gpus|device_ids)\[\d+\])", code)
    return bool(numbered) and not any(value and device_value(value, script) for value in script.values.get(code, []))


def device_value(node: cst.CSTNode, script: Script) -> Value | None:
    """What device an expression names; None where it names none that the text tells."""
    if isinstance(node, (cst.SimpleString, cst.ConcatenatedString)):
        word = script.string(node) or ""
        return Value(False, script.code(node), word) if re.fullmatch(r"cuda(:\d+)?", word) else None
    if isinstance(node, (cst.FormattedString, cst.BinaryOperation)) or m.matches(node, m.Call(func=m.Attribute(attr=m.Name("format")))):
        return Value(False, script.code(node)) if re.match(r"""f?["']cuda:""", script.code(node)) else None
    if isinstance(node, cst.IfExp):
        sides = [device_value(side, script) for side in (node.body, node.orelse)]
        value = sides[0] or sides[1]
        falls = implies_gpu(node.test, script) if sides[0] else implies_no_gpu(node.test, script)
        if value is None or not falls or follows_a_device(node.test, script):
            return None  # what it names is looked at by itself
        return Value(value.is_device, value.default, value.constant, True)
    if isinstance(node, cst.Call) and script.name(node.func) == "torch.device" and node.args:
        first, second = node.args[0].value, node.args[1].value if len(node.args) > 1 else None
        value = device_value(first, script)
        if value and second is not None:
            return Value(True, f'"cuda:" + str({script.code(second)})') if value.constant == "cuda" else None
        if value:
            return Value(True, value.default, value.constant, value.falls_back)
        if isinstance(first, cst.Integer):
            return Value(True, f'"cuda:{first.value}"', f"cuda:{first.value}")
        if numbers_a_gpu(first, script):
            return Value(True, script.code(first))
        return Value(True, chosen=True) if script.string(first) is None else None
    return None


@dataclass(frozen=True)
class Binding:
    """A name of the script that holds its device."""

    name: str
    scope: Any
    block: cst.CSTNode | None
    end: int
    is_device: bool
    node: cst.CSTNode | None = None
    value: Value | None = None


def bindings(script: Script, shared: Mapping[str, str]) -> list[Binding]:
    """The names that hold a device, in the order of the text; `shared` has those of other modules, by module."""
    found = []
    for node in script.nodes:
        if isinstance(node, cst.Assign) and len(node.targets) == 1 and isinstance(node.targets[0].target, cst.Name):
            name, value = node.targets[0].target.value, device_value(node.value, script)
            if value and (value.is_device or ("device" in name.lower() and not name.lower().endswith("type"))):
                block, end = script.parent(script.parent(node) or node), script.span(node)[1]
                found.append(Binding(name, script.scope(node), block, end, value.is_device, node.value, value))
        elif isinstance(node, cst.ImportFrom) and not isinstance(node.names, cst.ImportStar):
            theirs = shared.get(_module(node, script))
            for alias in node.names:
                if theirs and alias.name.value == theirs:
                    name = alias.evaluated_alias or theirs
                    found.append(Binding(name, script.scope(node), script.module, script.span(node)[1], True))
    return found


def _module(node: cst.ImportFrom, script: Script) -> str:
    return "." * len(node.relative) + (script.code(node.module) if node.module else "")


def exported(script: Script) -> str:
    """The name of the module's own device, for other modules to import; "" without one."""
    of_module = [b for b in bindings(script, {}) if isinstance(b.scope, metadata.GlobalScope) and b.block is script.module and b.is_device]
    return of_module[0].name if len(of_module) == 1 else ""


def _serves(binding: Binding, nodes: Iterable[cst.CSTNode], script: Script) -> bool:
    """Whether a binding can be read, and has been made, at all of these nodes."""
    for node in nodes:
        scope = script.scope(node)
        assignments = scope[binding.name] if scope and binding.name in scope else set()
        if len(assignments) != 1 or next(iter(assignments)).scope is not binding.scope:
            return False
        if scope is binding.scope and script.span(node)[0] < binding.end:
            return False
        if binding.block not in script.parents(node):
            return False
    return True


def _bound_names(script: Script) -> set[str]:
    scopes = {script.scope(node) for node in script.nodes} - {None}
    return {assignment.name for scope in scopes for assignment in scope.assignments}


class _Head:
    """The top of a script: its docstring, its imports, and what they need; where a device can be asked for after them."""

    def __init__(self, script: Script, needs: Sequence[cst.CSTNode]) -> None:
        self.first, self.last, self.names = 0, 0, set[str]()
        imports, needed = False, min((script.span(node)[0] for node in needs), default=len(script.bytes))
        for statement in script.module.body:
            if script.span(statement)[1] > needed:
                break
            code = script.code(statement)
            small = statement.body[0] if isinstance(statement, cst.SimpleStatementLine) else None
            if isinstance(small, (cst.Import, cst.ImportFrom)) or (
                isinstance(statement, cst.Try) and re.match(r"try:\s+(import|from)\b", code)
            ):
                future = isinstance(small, cst.ImportFrom) and m.matches(small.module or cst.Name("x"), m.Name("__future__"))
                if not imports and not future:
                    self.first, imports = script.span(statement)[0], True
                if isinstance(small, cst.Import):
                    self.names |= {_bound(alias) for alias in small.names}
            elif isinstance(small, cst.Expr) and not isinstance(small.value, cst.SimpleString):
                continue  # such as warnings.filterwarnings, between imports
            elif not isinstance(small, cst.Expr) and not code.startswith("os.environ"):
                break
            self.last = script.span(statement)[1]
            self.first = self.first if imports else self.last

    @property
    def torch(self) -> str:
        return next((name.partition(" as ")[2] or "torch" for name in self.names if name.split(" as ")[0] == "torch"), "torch")


def _bound(alias: cst.ImportAlias) -> str:
    name = alias.evaluated_name
    return f"{name} as {alias.evaluated_alias}" if alias.evaluated_alias else name.split(".")[0]


def settle(script: Script, findings: Sequence[Finding], shared: Mapping[str, str]) -> list[Edit]:
    """The edits of findings with their placeholders filled in, and what the script must say once for them."""
    edits = [(edit, finding.node) for finding in findings for edit in finding.found.edits]
    used = "".join(edit.text for edit, _ in edits)
    if "\0" not in used:
        return [edit for edit, _ in edits]
    constants = set(_NAMED.findall(used))
    plain = constants <= {"cuda", "cuda:0"}
    default = "cuda" if plain and constants != {"cuda:0"} else min(constants) if len(constants) == 1 else "cuda"
    others = constants - {default} - ({"cuda", "cuda:0"} if default in ("cuda", "cuda:0") else set())
    helper = DEVICE_OF in used or bool(others)
    needs = [node for edit, node in edits if "\0" in edit.text.replace(TORCH, "")]
    head, support, imports = _Head(script, needs), [], {"time"} if CLOCK in used else set()
    owner, own = None, bindings(script, shared) if needs else []
    for binding in own if len(own) == 1 else [b for b in own if b.node is None]:
        others_need = [node for node in needs if node is not binding.node]
        local = not isinstance(binding.scope, metadata.GlobalScope)
        if not (helper and local and others_need) and _serves(binding, others_need, script):
            owner = binding
    torch, newline, name, is_device = head.torch, script.module.default_newline, "device", True
    kept: list[Edit] = []
    if owner is not None:
        name, is_device = owner.name, owner.is_device
        if owner.value and not owner.value.falls_back and not owner.value.chosen:
            code = owner.value.default
            chosen = f'os.environ.get("DEVICE") or ({code} if {torch}.cuda.is_available() else "cpu")'
            assert owner.node is not None
            kept += script.replaced(owner.node, f"{torch}.device({chosen})" if is_device else chosen)
            imports |= {"os"}
        edits = [(edit, node) for edit, node in edits if node is not owner.node]
        helper = helper and any(DEVICE_OF in edit.text or set(_NAMED.findall(edit.text)) & others for edit, _ in edits)
    elif needs:
        name, is_device = next(n for n in ("device", "default_device", "port_device") if n not in _bound_names(script)), True
        theirs = next((module for module in shared if _imports(script, module)), None)
        if theirs is not None:
            support.append(f"from {theirs} import {shared[theirs]}" + (f" as {name}" if name != shared[theirs] else ""))
        else:
            support.append(f'{name} = {torch}.device(os.environ.get("DEVICE") or ("{default}" if {torch}.cuda.is_available() else "cpu"))')
            imports |= {"os"}
            if "CUDA_VISIBLE_DEVICES" in script.bytes[head.last :].decode():
                note = "  # so that asking leaves CUDA_VISIBLE_DEVICES to be set below"
                support.insert(0, f'os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1"){note}')
    kind = f"{name}.type" if is_device else f"{torch}.device({name}).type"
    on_gpu = f'{kind} == "cuda"'
    bound = _bound_names(script)
    late = []
    if helper and "device_of" not in bound:
        late += ["", "", *HELPER.format(torch=torch, on_gpu=on_gpu, device=name if is_device else f"{torch}.device({name})").splitlines()]
    if CLOCK in used and "CpuEvent" not in bound:
        late += ["", "", *STAND_IN.splitlines()]
    imports |= {"contextlib"} if NULL in used else set()
    imports |= {"torch"} if not any(each.split(" as ")[0] == "torch" for each in head.names) else set()
    lines = [f"import {each}" for each in sorted(imports - head.names)]
    kept.append(Edit(head.first, head.first, "".join(newline + line if head.first == head.last else line + newline for line in lines)))
    at = owner.end if owner is not None and isinstance(owner.scope, metadata.GlobalScope) and late else head.last
    if support or late:
        kept.append(Edit(at, at, "".join(newline + line for line in ["", *support, *late] if support or late)))
    for edit, node in edits:
        text = edit.text
        filled = {f"{DEVICE}.type": kind, DEVICE: name, ON_GPU: on_gpu, OFF_GPU: on_gpu.replace("==", "!="), DEVICE_OF: "device_of"}
        for placeholder, code in filled.items():
            text = text.replace(placeholder, code)
        text = text.replace(TORCH, torch).replace(CLOCK, "CpuEvent()").replace(NULL, "contextlib.nullcontext()")
        text = _NAMED.sub(lambda match: f'device_of("{match[1]}")' if match[1] in others else name, text)
        quote = next((above.start[-1] for above in script.parents(node) if isinstance(above, cst.FormattedString)), "")
        kept.append(Edit(edit.start, edit.end, text.replace('"', "'") if quote == '"' else text))
    return kept


def _imports(script: Script, module: str) -> bool:
    """Whether the script imports a module at its top."""
    statements = [line for line in script.module.body if isinstance(line, cst.SimpleStatementLine)]
    for small in (small for line in statements for small in line.body):
        if isinstance(small, cst.ImportFrom) and _module(small, script) == module:
            return True
        if isinstance(small, cst.Import) and module in {alias.evaluated_name for alias in small.names}:
            return True
    return False

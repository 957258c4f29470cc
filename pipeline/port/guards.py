"""Which lines only run where there is a GPU, or where an option asks for one: these work as they are."""

from __future__ import annotations

import enum
import re

import libcst as cst
from libcst import matchers as m

from pipeline.port.script import DISTRIBUTED, Script


class Guard(enum.Enum):
    """Why a line does not run on a machine without a GPU."""

    GPU = "there is a GPU"
    ASKED = "an option, or a launcher, asks for it"


_ASKS = re.compile(r"torch\.cuda\.(is_available|device_count|is_initialized|is_bf16_supported)$")
_ON_CUDA = re.compile(r"""\.type\s*==\s*["']cuda|["']cuda["']\s+in\s|startswith\(\s*["']cuda|==\s*["']cuda|!=\s*["']cpu["']|\.is_cuda$""")
_ON_CPU = re.compile(r"""\.type\s*==\s*["']cpu["']|==\s*["']cpu["']|["']cpu["']\s+in\s|!=\s*["']cuda["']""")


def why(node: cst.CSTNode, script: Script) -> Guard | None:
    """Why a line is not reached without a GPU; None where it may be."""
    below, found = node, None
    for above in script.parents(node):
        if isinstance(above, (cst.If, cst.IfExp, cst.While)) and below is not above.test:
            holds = below is above.body
            found = _implied(above.test, holds, script) or found
        elif isinstance(above, cst.BooleanOperation) and below is above.right:
            found = _implied(above.left, isinstance(above.operator, cst.And), script) or found
        elif isinstance(above, (cst.IndentedBlock, cst.Module)):
            found = _left_before(below, above, script) or found
        elif isinstance(above, cst.FunctionDef) and DISTRIBUTED.search(above.name.value):
            found = found or Guard.ASKED
        if found is Guard.GPU:
            return found
        below = above
    return found


def _left_before(node: cst.CSTNode, block: cst.IndentedBlock | cst.Module, script: Script) -> Guard | None:
    """`if not torch.cuda.is_available(): return` before a line, in its block."""
    for statement in block.body:
        if statement is node:
            return None
        leaves = isinstance(statement, cst.If) and statement.orelse is None and _leaves(statement.body)
        if leaves and (found := _implied(cst.ensure_type(statement, cst.If).test, False, script)):
            return found
    return None


def _leaves(body: cst.BaseSuite) -> bool:
    """Whether a block ends in `return` or `continue`. One that raises, or ends the script, is a demand for a GPU, and a finding."""
    last = body.body[-1] if body.body else None
    return isinstance(last.body[-1] if isinstance(last, cst.SimpleStatementLine) else last, (cst.Return, cst.Continue))


def implies_gpu(test: cst.BaseExpression, script: Script) -> bool:
    """Whether there is a GPU where `test` holds."""
    return _implied(test, True, script) is Guard.GPU


def implies_no_gpu(test: cst.BaseExpression, script: Script) -> bool:
    """Whether there is a GPU where `test` does not hold."""
    return _implied(test, False, script) is Guard.GPU


def follows_a_device(test: cst.BaseExpression, script: Script) -> bool:
    """Whether `test` asks a device that is chosen elsewhere what it is, and not the machine what it has."""
    return bool(_ON_CUDA.search(script.code(test)) or _ON_CPU.search(script.code(test)))


def _implied(test: cst.BaseExpression, holds: bool, script: Script, seen: frozenset[str] = frozenset()) -> Guard | None:
    """What follows from `test` being true, or false."""
    if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
        return _implied(test.expression, not holds, script, seen)
    if isinstance(test, cst.BooleanOperation):
        sides = [_implied(side, holds, script, seen) for side in (test.left, test.right)]
        if isinstance(test.operator, cst.And) is holds:  # `a and b` is true, or `a or b` false: both sides say something
            return max(sides, key=lambda side: (side is Guard.GPU, side is Guard.ASKED))
        return None if None in sides else Guard.ASKED if Guard.ASKED in sides else Guard.GPU
    if isinstance(test, cst.IfExp) and holds and m.matches(test.orelse, m.Name("False")):
        return _implied(test.test, True, script, seen)
    if isinstance(test, cst.Call) and m.matches(test, m.Call(func=m.Name("bool"), args=[m.Arg()])):
        return _implied(test.args[0].value, holds, script, seen)
    code = script.code(test)
    if holds and ((isinstance(test, cst.Call) and _ASKS.match(script.name(test.func))) or _counts_gpus(test, script)):
        return Guard.GPU
    if not isinstance(test, (cst.SimpleString, cst.BooleanOperation)) and (_ON_CUDA if holds else _ON_CPU).search(code):
        return Guard.GPU
    if code in script.values and code not in seen:
        values = [value and _implied(value, holds, script, seen | {code}) for value in script.values[code]]
        if None not in values:
            return Guard.ASKED if Guard.ASKED in values else Guard.GPU
    if holds and (DISTRIBUTED.search(code) or _asked(test, script)):
        return Guard.ASKED
    return None


def _counts_gpus(test: cst.BaseExpression, script: Script) -> bool:
    """`torch.cuda.device_count() > 0`, and the like."""
    if not isinstance(test, cst.Comparison) or len(test.comparisons) > 1:
        return False
    operator, right = test.comparisons[0].operator, script.code(test.comparisons[0].comparator)
    left = test.left
    if isinstance(left, cst.Name) and len(values := script.values.get(left.value, [])) == 1 and values[0]:
        left = values[0]
    counted = isinstance(left, cst.Call) and script.name(left.func) == "torch.cuda.device_count"
    return counted and (
        isinstance(operator, (cst.GreaterThan, cst.NotEqual)) or (isinstance(operator, cst.GreaterThanEqual) and right != "0")
    )


def _asked(test: cst.BaseExpression, script: Script) -> bool:
    """`args.amp`, `args.gpu is not None`: an option that is off where nobody gives it."""
    if isinstance(test, cst.Comparison) and m.matches(test.comparisons[0].operator, m.IsNot() | m.NotEqual() | m.GreaterThanEqual()):
        test = test.left
    if not isinstance(test, cst.Attribute):
        return False
    values = script.values.get(script.code(test), [])
    if any(value is None or script.code(value) not in ("False", "None", test.attr.value) for value in values):
        return False  # the script itself gives it another value; `args.gpu = gpu` hands it on
    option = script.options.get(test.attr.value)
    if option is None:
        return False
    default, action = script.argument(option, "default"), script.argument(option, "action")
    if action and script.string(action.value) == "store_true":
        return default is None or script.code(default.value) == "False"
    return default is None or script.code(default.value) in ("None", "False", "''", '""', "-1")

"""A script as LibCST reads it: names through imports and aliases, positions, and which lines only run where there is a GPU."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections import defaultdict
from typing import Any

import libcst as cst
from libcst import metadata

from pipeline.port.rules import NULL, ON_GPU, Edit

DISTRIBUTED = re.compile(
    r"distributed|ddp|world_size|local_rank|num_gpus|n_gpu|ngpu|multi_?gpu|(init|setup|is|use)_dist|dist\.is_|\.dist(_|\b)|slurm",
    re.IGNORECASE,
)
"""Words of conditions and functions that only matter where a launcher, or an option, starts several processes."""


_LINE_END = re.compile("\r\n|\r|\n")


class NotPython(ValueError):
    """The text is no Python 3; `line` is the first that is not."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


def parsed(text: str) -> ast.Module:
    """`text` as Python itself reads it.

    Raises:
        NotPython: it cannot.
        RecursionError: it is nested too deeply.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of strings such as "\\d"
            return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise NotPython(getattr(error, "msg", str(error)), getattr(error, "lineno", 1) or 1) from None
    except MemoryError:  # how Python's own parser says it
        raise RecursionError from None


def without_async(text: str) -> tuple[str, list[int]]:
    """`text` with `non_blocking=` for the keyword `async=` of PyTorch before 0.4, which Python 3.7 cannot read; the lines changed."""
    lines, depth, before = text.split("\n"), 0, None
    changed: list[int] = []
    try:
        for token in reversed(list(tokenize.generate_tokens(io.StringIO(text).readline))):
            if token.type == tokenize.OP:
                depth += (token.string in (")", "]", "}")) - (token.string in ("(", "[", "{"))
            if before and depth and token.string == "async" and before.string == "=":
                (row, start), (_, end) = token.start, token.end
                lines[row - 1] = lines[row - 1][:start] + "non_blocking" + lines[row - 1][end:]
                changed.insert(0, row)
            before = token
    except (tokenize.TokenError, SyntaxError):
        pass
    return "\n".join(lines), changed


class Script:
    """The text of one Python file, parsed.

    Raises:
        NotPython: it cannot be parsed.
    """

    def __init__(self, text: str) -> None:
        self.text, self.lines, self.bytes = text, _LINE_END.split(text), text.encode()
        try:
            module = cst.parse_module(text)
        except cst.ParserSyntaxError as error:
            parsed(text)  # what Python says of it is said in fewer words
            raise NotPython(error.message.splitlines()[0], error.raw_line) from None
        self.wrapper = metadata.MetadataWrapper(module, unsafe_skip_copy=True)
        self.module = self.wrapper.module
        wanted = (metadata.ByteSpanPositionProvider, metadata.QualifiedNameProvider, metadata.ScopeProvider, metadata.ParentNodeProvider)
        found: Any = self.wrapper.resolve_many(wanted)
        self._parents: dict[cst.CSTNode, cst.CSTNode]
        self._spans, self._names, self._scopes, self._parents = (found[each] for each in wanted)
        self.nodes = [node for node in self._spans if not isinstance(node, (cst.BaseParenthesizableWhitespace, cst.Comma, cst.Dot))]
        self.values: dict[str, list[cst.BaseExpression | None]] = defaultdict(list)
        self.options: dict[str, cst.Call] = {}
        for node in self.nodes:
            self._remember(node)

    def _remember(self, node: cst.CSTNode) -> None:
        """Note what is assigned to names and attributes, and the options of an argument parser."""
        if isinstance(node, cst.Assign):
            for target in node.targets:
                self.values[self.code(target.target)].append(node.value)
        elif isinstance(node, cst.AnnAssign) and node.value:
            self.values[self.code(node.target)].append(node.value)
        elif isinstance(node, cst.AugAssign):
            self.values[self.code(node.target)].append(None)
        elif isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute) and node.func.attr.value == "add_argument":
            named = self.argument(node, "dest")
            for word in [self.string(arg.value) for arg in ([named] if named else node.args) if arg is named or not arg.keyword]:
                if word and (named or word.startswith("-")):
                    self.options[word.lstrip("-").replace("-", "_")] = node

    # Where a node is, and what it says.

    def span(self, node: cst.CSTNode) -> tuple[int, int]:
        """The bytes of a node: the first, and the first after it. Parentheses around an expression are not in it."""
        span = self._spans[node]
        return span.start, span.start + span.length

    def position(self, node: cst.CSTNode) -> tuple[int, int]:
        """Line and column, both from 1."""
        before = self.bytes[: self.span(node)[0]].decode()
        lines = _LINE_END.split(before)
        return len(lines), len(lines[-1]) + 1

    def code(self, node: cst.CSTNode) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        """The node around a node."""
        return self._parents.get(node)

    def parents(self, node: cst.CSTNode) -> list[cst.CSTNode]:
        """The nodes around a node, the nearest first."""
        above = []
        while (outer := self._parents.get(node)) is not None:
            above.append(node := outer)
        return above

    def scope(self, node: cst.CSTNode) -> Any:
        """The scope that a node's names are looked up in."""
        while node not in self._scopes and node in self._parents:
            node = self._parents[node]
        return self._scopes.get(node)

    def name(self, node: cst.CSTNode) -> str:
        """The full name of what was imported, `torch.cuda.Event`, whatever it is called here; "" for anything else."""
        dotted: cst.CSTNode = node
        while isinstance(dotted, cst.Attribute):
            dotted = dotted.value
        if not isinstance(dotted, cst.Name):
            return ""
        names: Any = self._names.get(node, ())
        names = names() if callable(names) else names
        return next((each.name for each in names if each.source is metadata.QualifiedNameSource.IMPORT), "")

    def string(self, node: cst.CSTNode) -> str | None:
        """The value of a plain string."""
        value = node.evaluated_value if isinstance(node, (cst.SimpleString, cst.ConcatenatedString)) else None
        return value if isinstance(value, str) else None

    def argument(self, call: cst.Call, keyword: str, position: int | None = None) -> cst.Arg | None:
        """An argument of a call by its name, or at a position where no star comes before it."""
        for index, arg in enumerate(call.args):
            if arg.star:
                position = None
            if (arg.keyword and arg.keyword.value == keyword) or (not arg.keyword and not arg.star and index == position):
                return arg
        return None

    # How it can be rewritten.

    def replaced(self, node: cst.CSTNode, text: str) -> tuple[Edit, ...]:
        """`text` in the place of a node."""
        return (Edit(*self.span(node), text),)

    def chosen(self, node: cst.CSTNode, otherwise: str) -> tuple[Edit, ...]:
        """A node where the device is a GPU, and `otherwise` elsewhere."""
        start, end = self.span(node)
        closed = isinstance(self.parent(node), (cst.Arg, cst.Assign, cst.AnnAssign, cst.Param, cst.Return, cst.WithItem, cst.Expr))
        opening, closing = ("", "") if closed else ("(", ")")
        return Edit(start, start, opening), Edit(end, end, f" if {ON_GPU} else {otherwise}{closing}")

    def only_on_gpu(self, node: cst.CSTNode, otherwise: str = "None", skippable: bool = True) -> tuple[Edit, ...]:
        """The statement that is this expression only on a GPU; where it is a part of a statement, `otherwise` in its place elsewhere."""
        statement = self.parent(node)
        line = self.parent(statement) if isinstance(statement, cst.Expr) else None
        if isinstance(self.parent(node), cst.WithItem):
            return self.chosen(node, NULL)
        if not skippable or statement is None or not isinstance(line, cst.SimpleStatementLine) or len(line.body) > 1:
            return self.chosen(node, otherwise)
        start = self.span(statement)[0]
        indent = self.bytes[self.bytes.rfind(b"\n", 0, start) + 1 : start].decode()
        return (Edit(start, start, f"if {ON_GPU}:{self.module.default_newline}{indent}{self.module.default_indent}"),)

    def removed(self, arg: cst.Arg, call: cst.Call) -> tuple[Edit, ...]:
        """A call without one of its arguments."""
        index = call.args.index(arg)
        start, end = self.span(arg)
        if index + 1 < len(call.args):
            end = self.span(call.args[index + 1])[0]
        elif index:
            start = self.span(call.args[index - 1])[1]
        return (Edit(start, end, ""),)

    def added(self, call: cst.Call, text: str) -> tuple[Edit, ...]:
        """A call with one more argument at its end."""
        if call.args:
            end = self.span(call.args[-1])[1]
            return (Edit(end, end, f", {text}"),)
        end = self.span(call)[1] - 1
        return (Edit(end, end, text),)

"""The language of record rules: comparisons of an event's fields as Python writes them, compiled, and nothing else of Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, TypeAlias

from factory_agents.contracts.documents import one_of
from factory_agents.contracts.patterns import PatternError, compile_search
from factory_agents.contracts.times import iso_time

__all__ = ["Expression", "ExpressionError", "Getter", "compile_all", "compile_batch", "compile_each", "parse_expression"]

Getter: TypeAlias = Callable[[str], Any]
"""An event's ``get``: a field's value, or None where it is missing."""


class ExpressionError(ValueError):
    """A rule cannot be read; ``line`` and ``column`` (from 1) are within the rule's text."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


@dataclass(frozen=True)
class Expression:
    """A checked rule: its text, the top-level fields it reads with their places, and the test over an event's ``get``.

    The test returns what Python would (its truth counts); where values don't fit it raises TypeError, AttributeError or
    ZeroDivisionError.
    """

    text: str
    fields: tuple[tuple[str, int, int], ...]
    test: Callable[[Getter], Any]
    tree: ast.expr

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The fields that it reads, once each."""
        return tuple(dict.fromkeys(name for name, _, _ in self.fields))

    @cached_property
    def line(self) -> str:
        """Its text in one line."""
        return " ".join(self.text.split())


_NUMBERS = (int, float)


def _product(left: Any, right: Any) -> Any:
    if isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS):
        return left * right
    raise TypeError(f"* takes numbers, got {type(left).__name__} and {type(right).__name__}")


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS):
        return left % right
    raise TypeError(f"% takes numbers, got {type(left).__name__} and {type(right).__name__}")


def _item(value: Any, key: str | int) -> Any:
    """A nested field; null and missing parents have only null fields, and a list ends in nulls."""
    if value is None:
        return None
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, int):
        return value[key] if -len(value) <= key < len(value) else None
    raise TypeError(f"{type(value).__name__} has no field {key!r}")


_FUNCTIONS: dict[str, Callable[..., Any]] = {"len": len, "abs": abs, "min": min, "max": max, "time": iso_time}
_METHODS = {"startswith": 1, "endswith": 1, "lower": 0, "upper": 0, "matches": 1}
_OPERATORS = (ast.Add, ast.Sub, ast.Div, ast.FloorDiv)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot)
_HINTS = {"null": "None", "nil": "None", "undefined": "None", "true": "True", "false": "False"}
_WORDS = {
    ast.Lambda: "a lambda",
    ast.JoinedStr: "an f-string",
    ast.NamedExpr: "an assignment",
    ast.ListComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.Dict: "a mapping",
}


def parse_expression(text: str) -> Expression:
    """Check a rule and compile it; raises ExpressionError with the place of what is not allowed."""
    tree = _parse(text)
    compiler = _Compiler(text)
    try:
        if isinstance(tree, (ast.Tuple, ast.List, ast.Set, ast.Constant)):
            raise ExpressionError("expected a comparison, which can be true or false, got a value", 1, 1)
        body = compiler.visit(tree)
        return Expression(text, tuple(compiler.fields), compiler.function(body), tree)
    except RecursionError as error:
        raise ExpressionError("nested too deeply", 1, 1) from error


def compile_all(expressions: Sequence[Expression]) -> Callable[[Getter], Any]:
    """One test of an event's ``get`` for all rules at once: true where each of them is (one call an event, not one a rule)."""
    compiler = _Compiler("")
    return compiler.function(_every([compiler.visit(e.tree) for e in expressions]))


def compile_batch(
    expressions: Sequence[Expression],
    attributes: Mapping[str, str],
    *,
    texts: Collection[str] = (),
    checks: Sequence[tuple[str, Callable[[Any], Any]]] = (),
    time: tuple[str, Callable[[Any], int | None] | int] | None = None,
) -> Callable[[Sequence[Any], list[int | None]], list[int]]:
    """One test of many events, objects that have the fields as ``attributes``: the places of those of which not every rule is true.

    What cannot be decided isn't true. ``texts`` are fields that hold nothing but text; ``checks`` are tests of attributes that come first,
    where they aren't None. ``time``: an attribute, and what reads its times or what they are multiplied by; the times of the other events
    are added to the list that is the second argument.
    """
    compiler = _Compiler("", lambda name: ast.Name(attributes[name], ast.Load()), texts, fast=True)
    rules = [compiler.checked(name, check) for name, check in checks] + [compiler.visit(e.tree) for e in expressions]
    read = {attributes[name] for e in expressions for name in e.names} | {name for name, _ in checks} | ({time[0]} if time else set())
    lines = ["def failing(events, times):", " found = []", " for place, event in _enumerate(events):", "  try:"]
    lines += [f"   {name} = event.{name}" for name in sorted(read)]
    if time is not None:
        lines += [f"   time = None if {time[0]} is None else {compiler.time(*time)}"]
    lines += ["   if rules:", *(["    times.append(time)"] if time else []), "    continue", "  except _Exception: pass"]
    tree = _Filled({"rules": _every(rules)}).visit(ast.parse("\n".join([*lines, "  found.append(place)", " return found"])))
    failing: Callable[[Sequence[Any], list[int | None]], list[int]] = compiler.named("failing", tree)
    return failing


def compile_each(expressions: Sequence[Expression]) -> Callable[[Getter], list[int]]:
    """One test that says of an event's ``get`` which rules aren't true: the place of one that is false, ``~place`` of one undecided."""
    values = {name: f"f{i}" for i, name in enumerate(dict.fromkeys(name for e in expressions for name, _, _ in e.fields))}
    compiler = _Compiler("", lambda name: ast.Name(values[name], ast.Load()))
    lines = ["def broken(get):", *(f" {value} = get({name!r})" for name, value in values.items()), " found = []"]
    for i in range(len(expressions)):
        lines += [" try:", f"  if not rule_{i}: found.append({i})", f" except _Exception: found.append({~i})"]
    rules = {f"rule_{i}": compiler.visit(e.tree) for i, e in enumerate(expressions)}
    broken: Callable[[Getter], list[int]] = compiler.named("broken", _Filled(rules).visit(ast.parse("\n".join([*lines, " return found"]))))
    return broken


def _every(rules: list[ast.expr]) -> ast.expr:
    return ast.BoolOp(ast.And(), rules) if len(rules) > 1 else rules[0] if rules else ast.Constant(True)


class _Filled(ast.NodeTransformer):
    """Puts expressions where their names stand."""

    def __init__(self, expressions: Mapping[str, ast.expr]) -> None:
        self._expressions = expressions

    def visit_Name(self, node: ast.Name) -> ast.expr:  # ast's own
        return self._expressions.get(node.id, node)


def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(f"({text}\n)", mode="eval").body  # in brackets, lines may break anywhere
    except SyntaxError as error:
        line, column = error.lineno or 1, error.offset or 1
        hint = "; write and, or, not" if re.search(r"&&|\|\||!(?!=)", text) else ""
        at_end = line > text.count("\n") + 1
        if at_end:
            lines = text.split("\n")
            line, column = len(lines), len(lines[-1]) + 1 + (len(lines) == 1)
        message = "it ends too early" if at_end else error.msg
        raise ExpressionError(f"not an expression: {message}{hint}", line, max(1, column - (line == 1))) from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise ExpressionError("not an expression: nested too deeply, or with a null character", 1, 1) from error


def _asked_for(name: str) -> ast.expr:
    """``get("name")``."""
    return ast.Call(ast.Name("get", ast.Load()), [ast.Constant(name)], [])


_FEW = 8
"""As many constants are compared one by one as fast as they are looked up in a set."""


class _Compiler:
    """Rewrites an allowed tree so that fields become what ``field`` says and nothing of Python's own is in reach."""

    def __init__(
        self, text: str, field: Callable[[str], ast.expr] = _asked_for, texts: Collection[str] = (), *, fast: bool = False
    ) -> None:
        self.fields: list[tuple[str, int, int]] = []
        self._of_field = field
        self._texts = texts
        self._fast = fast
        self._lines = text.split("\n")
        self._environment: dict[str, Any] = {"__builtins__": {}, "_product": _product, "_modulo": _modulo, "_item": _item}
        self._environment.update({f"_{name}": function for name, function in _FUNCTIONS.items()})

    def function(self, body: ast.expr) -> Callable[[Getter], Any]:
        arguments = ast.arguments(posonlyargs=[], args=[ast.arg("get")], kwonlyargs=[], kw_defaults=[], defaults=[])
        tree = ast.fix_missing_locations(ast.Expression(ast.Lambda(arguments, body)))
        code = compile(tree, "<rule>", "eval")
        test: Callable[[Getter], Any] = eval(code, self._environment)  # every node is ours, and there are no builtins
        return test

    def named(self, name: str, tree: ast.Module) -> Any:
        """What a module defines under a name."""
        self._environment |= {"_Exception": Exception, "_enumerate": enumerate}
        code = compile(ast.fix_missing_locations(tree), "<rules>", "exec")
        exec(code, self._environment)  # every node is ours, and there are no builtins
        return self._environment[name]

    def visit(self, node: ast.expr) -> ast.expr:
        visitor = getattr(self, f"_visit_{type(node).__name__.lower()}", None)
        if visitor is None:
            what = _WORDS.get(type(node), type(node).__name__)
            self._fail(node, f"{what} is not allowed in a rule; expected comparisons of fields with and, or, not")
        rewritten: ast.expr = visitor(node)
        return rewritten

    def _all(self, nodes: Iterable[ast.expr]) -> list[ast.expr]:
        return [self.visit(n) for n in nodes]

    def _visit_boolop(self, node: ast.BoolOp) -> ast.expr:
        return ast.BoolOp(node.op, self._all(node.values))

    def _visit_unaryop(self, node: ast.UnaryOp) -> ast.expr:
        if isinstance(node.op, ast.Invert):
            self._fail(node, "~ is not allowed in a rule; write not")
        return ast.UnaryOp(node.op, self.visit(node.operand))

    def _joined(self, node: ast.expr) -> list[ast.expr] | None:
        """The parts of a sum of texts; None for anything else."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self._joined(node.left), self._joined(node.right)
            return None if left is None or right is None else left + right
        known = node.value if isinstance(node, ast.Constant) else node.id if isinstance(node, ast.Name) and node.id in self._texts else None
        return [node] if isinstance(known, str) else None

    def _visit_binop(self, node: ast.BinOp) -> ast.expr:
        if self._texts and (parts := self._joined(node)):  # one text, not one for each +
            values = [self.visit(part) for part in parts]
            return ast.JoinedStr([v if isinstance(v, ast.Constant) else ast.FormattedValue(v, -1) for v in values])
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, (ast.Mult, ast.Mod)):
            return self._call("_product" if isinstance(node.op, ast.Mult) else "_modulo", left, right)
        if not isinstance(node.op, _OPERATORS):
            self._fail(node, "this operator is not allowed in a rule; expected one of + - * / // %")
        return ast.BinOp(left, node.op, right)

    def _visit_compare(self, node: ast.Compare) -> ast.expr:
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            if not isinstance(operator, _COMPARISONS):
                self._fail(node, "unknown comparison")
            if isinstance(operator, (ast.Is, ast.IsNot)) and not _is_none(left, right):
                self._fail(right, "'is' is for None; write == or !=")
        left = self.visit(node.left)
        return ast.Compare(left, node.ops, [self._compared(o, n) for o, n in zip(node.ops, node.comparators, strict=True)])

    def _compared(self, operator: ast.cmpop, node: ast.expr) -> ast.expr:
        """What is compared with: fast, many texts are a set, in which what has no hash cannot be decided."""
        options = node.elts if isinstance(node, (ast.List, ast.Tuple, ast.Set)) and isinstance(operator, (ast.In, ast.NotIn)) else []
        if self._fast and len(options) > _FEW and all(isinstance(o, ast.Constant) and isinstance(o.value, str) for o in options):
            return ast.Set(options)
        return self.visit(node)

    def _visit_ifexp(self, node: ast.IfExp) -> ast.expr:
        return ast.IfExp(self.visit(node.test), self.visit(node.body), self.visit(node.orelse))

    def _visit_list(self, node: ast.List) -> ast.expr:
        return ast.List(self._all(node.elts), ast.Load())

    def _visit_tuple(self, node: ast.Tuple) -> ast.expr:
        return ast.Tuple(self._all(node.elts), ast.Load())

    def _visit_set(self, node: ast.Set) -> ast.expr:
        return ast.Tuple(self._all(node.elts), ast.Load())

    def _visit_constant(self, node: ast.Constant) -> ast.expr:
        if node.value is not None and not isinstance(node.value, (str, int, float)):
            self._fail(node, f"expected text, a number, True, False or None, got {node.value!r}")
        return ast.Constant(node.value)

    def _visit_name(self, node: ast.Name) -> ast.expr:
        if node.id in _HINTS:
            self._fail(node, f"{node.id} is no field; write {_HINTS[node.id]}")
        return self._field(node, node.id)

    def _visit_attribute(self, node: ast.Attribute) -> ast.expr:
        if node.attr in _METHODS:
            self._fail(node, f"{node.attr} is a method; call it: .{node.attr}(…)")
        return self._call("_item", self.visit(node.value), ast.Constant(node.attr))

    def _visit_subscript(self, node: ast.Subscript) -> ast.expr:
        key = node.slice
        if isinstance(key, ast.UnaryOp) and isinstance(key.op, ast.USub) and isinstance(key.operand, ast.Constant):
            key = ast.Constant(-key.operand.value) if isinstance(key.operand.value, int) else key
        if not isinstance(key, ast.Constant) or type(key.value) not in (str, int):
            self._fail(node, 'expected a field\'s name or an index in the brackets, such as user["e-mail"] or tags[0]')
        return self._call("_item", self.visit(node.value), ast.Constant(key.value))

    def _visit_call(self, node: ast.Call) -> ast.expr:
        if node.keywords:
            self._fail(node, "named arguments are not allowed in a rule")
        if isinstance(node.func, ast.Attribute):
            return self._method(node, node.func)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "field":
            argument = node.args[0] if len(node.args) == 1 else None
            if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                self._fail(node, 'field() takes one name in quotes, such as field("user-id")')
            return self._field(node, argument.value)
        if name not in _FUNCTIONS:
            self._fail(node, f"unknown function {ast.unparse(node.func)!r}{one_of(name, ['field', *_FUNCTIONS])}")
        if not node.args or (name == "time" and len(node.args) > 1):
            self._fail(node, f"{name}() {'needs an' if not node.args else 'takes one'} argument")
        return self._call(f"_{name}", *self._all(node.args))

    def _method(self, node: ast.Call, function: ast.Attribute) -> ast.expr:
        name = function.attr
        if name not in _METHODS:
            self._fail(node, f"unknown method {name!r}{one_of(name, _METHODS)}")
        if len(node.args) != _METHODS[name]:
            self._fail(node, f"{name}() takes {('no arguments', 'one argument')[_METHODS[name]]}, got {len(node.args)}")
        value = self.visit(function.value)
        if name == "matches":
            return self._call(self._pattern(node.args[0]), value)
        return ast.Call(ast.Attribute(value, name, ast.Load()), self._all(node.args), [])

    def _pattern(self, node: ast.expr) -> str:
        """The name of a compiled search; like JSON Schema's ``pattern`` it matches anywhere unless anchored."""
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            self._fail(node, 'matches() takes a regular expression in quotes, such as path.matches("[.]py$")')
        try:
            search = compile_search(node.value)
        except PatternError as error:
            self._fail(node, str(error))
        return self._given(search)

    def checked(self, value: str, check: Callable[[Any], Any]) -> ast.expr:
        """That what has this name is None, or passes a check."""
        named = ast.Name(value, ast.Load())
        return ast.BoolOp(ast.Or(), [ast.Compare(named, [ast.Is()], [ast.Constant(None)]), self._call(self._given(check), named)])

    def time(self, value: str, read: Callable[[Any], int | None] | int) -> str:
        """The time that what has this name says."""
        return f"{value} * {read}" if isinstance(read, int) else f"{self._given(read)}({value})"

    def _given(self, function: Callable[[Any], Any]) -> str:
        """The name of a function from elsewhere."""
        name = f"_given{len(self._environment)}"
        self._environment[name] = function
        return name

    def _field(self, node: ast.expr, name: str) -> ast.expr:
        self.fields.append((name, *self._place(node)))
        return self._of_field(name)

    def _call(self, name: str, *arguments: ast.expr) -> ast.expr:
        return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])

    def _place(self, node: ast.expr) -> tuple[int, int]:
        """Line and column in characters: Python counts bytes, and our opening bracket."""
        line = min(node.lineno, len(self._lines))
        prefix = self._lines[line - 1].encode()[: max(0, node.col_offset - (line == 1))]
        return line, len(prefix.decode(errors="ignore")) + 1

    def _fail(self, node: ast.expr, message: str) -> NoReturn:
        raise ExpressionError(message, *self._place(node))


def _is_none(*nodes: ast.expr) -> bool:
    return any(isinstance(n, ast.Constant) and n.value is None for n in nodes)

"""The language of record rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.contracts.expressions import ExpressionError, compile_all, parse_expression


def holds(text: str, **event: Any) -> bool:
    return bool(parse_expression(text).test(event.get))


@pytest.mark.parametrize(
    ("text", "event", "expected"),
    [
        ("added is None or added >= 0", {}, True),
        ("added is None or added >= 0", {"added": -1}, False),
        ("0 <= added < 10", {"added": 9}, True),
        ("0 <= added < 10", {"added": 10}, False),
        ("kind in ['a', 'b'] and not hidden", {"kind": "b", "hidden": False}, True),
        ("kind not in {'a', 'b'}", {"kind": "c"}, True),
        ("'@' in email", {"email": "a@b"}, True),
        ("added + deleted == total and total - added == deleted", {"added": 1, "deleted": 2, "total": 3}, True),
        ("price * count / 2 == 6 and count // 2 == 1 and count % 2 == 1", {"price": 4, "count": 3}, True),
        ("-added < 0", {"added": 1}, True),
        ("event_id == repo + ':' + path", {"event_id": "r:p", "repo": "r", "path": "p"}, True),
        ("len(tags) <= 2 and tags[0] == 'x' and tags[-1] == 'y' and tags[5] is None", {"tags": ["x", "y"]}, True),
        ("user.email is None", {}, True),
        ("user.email is None", {"user": None}, True),
        ("user.address.city == 'Bonn'", {"user": {"address": {"city": "Bonn"}}}, True),
        ("user['e-mail'].endswith('.org')", {"user": {"e-mail": "a@b.org"}}, True),
        ("field('user-id') == 7", {"user-id": 7}, True),
        ("path.startswith('src/') and path.lower() == path", {"path": "src/a"}, True),
        ("path.matches('[.]py$')", {"path": "a.py"}, True),
        ("path.matches('^[.]py')", {"path": "a.py"}, False),
        ("abs(a) == 1 and max(a, b) == 2 and min(a, b) == -1", {"a": -1, "b": 2}, True),
        ("a == 1 if b is None else a == 2", {"a": 2, "b": 0}, True),
        ("a == 1 and\n  b == 2", {"a": 1, "b": 2}, True),
        ("name == 'größe'", {"name": "größe"}, True),
    ],
)
def test_a_rule_means_what_it_says(text: str, event: dict[str, Any], expected: bool) -> None:
    assert holds(text, **event) is expected


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("added >= 0", {}),
        ("added >= 0", {"added": "1"}),
        ("path.startswith('a')", {"path": None}),
        ("path.matches('a')", {"path": 1}),
        ("a / b > 1", {"a": 1, "b": 0}),
        ("user.email == 'x'", {"user": "text"}),
        ("a * 1000000000 == b", {"a": "text"}),
        ("a % 3 == b", {"a": "%1000000000d"}),
        ("len(a) > 1", {"a": 3}),
    ],
)
def test_a_rule_whose_values_do_not_fit_raises_what_the_caller_expects(text: str, event: dict[str, Any]) -> None:
    with pytest.raises((TypeError, AttributeError, ArithmeticError)):
        holds(text, **event)


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("added >", 1, 8, "it ends too early"),
        ("added\n>", 2, 2, "it ends too early"),
        ("added = 3", 1, 1, "Maybe you meant '=='"),
        ("a > 1 && b > 1", 1, 8, "write and, or, not"),
        ("a == null", 1, 6, "write None"),
        ("é == 'é' and b == null", 1, 19, "write None"),
        ("a == 1 and\n  b == null", 2, 8, "write None"),
        ("a is 3", 1, 6, "'is' is for None"),
        ("a ** 9 > 1", 1, 1, "expected one of + - * / // %"),
        ("a, b", 1, 1, "expected a comparison"),
        ("True", 1, 1, "expected a comparison"),
        ("path.format(1) == 'x'", 1, 1, "unknown method 'format'"),
        ("path.startwith('x')", 1, 1, "did you mean 'startswith'?"),
        ("path.startswith == 'x'", 1, 1, "call it"),
        ("lenn(a) > 1", 1, 1, "did you mean 'len'?"),
        ("len() > 1", 1, 1, "needs an argument"),
        ("max(a, key=b) > 1", 1, 1, "named arguments"),
        ("path.matches('((')", 1, 14, "not a regular expression"),
        ("path.matches(other)", 1, 14, "in quotes"),
        ("tags[i] > 1", 1, 1, "in the brackets"),
        ("tags[1:2] == 1", 1, 1, "in the brackets"),
        ("field(a) > 1", 1, 1, "in quotes"),
        ("~a == 1", 1, 1, "write not"),
        ("b'x' == a", 1, 1, "expected text, a number"),
        ("f'{a}' == a", 1, 1, "an f-string is not allowed"),
        ("[x for x in a] == b", 1, 1, "a comprehension is not allowed"),
        ("(lambda: 1)() == 1", 1, 1, "unknown function"),
        ("(y := 1) == 1", 1, 2, "an assignment is not allowed"),
        ("(yield) == 1", 1, 2, "not allowed"),
        ("not " * 3000 + "a", 1, 1, "nested"),
    ],
)
def test_what_is_not_allowed_is_refused_at_its_place(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text)
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true') == 0",
        "eval('1') == 1",
        "open('/etc/passwd') == 1",
        "().__class__.__bases__ == 1",
        "get('x') == 1",
        "_item(a, 'b') == 1",
        "print(1) == 1",
    ],
)
def test_nothing_of_python_is_in_reach(text: str) -> None:
    try:
        expression = parse_expression(text)
    except ExpressionError:
        return
    with pytest.raises(TypeError):  # double underscores are fields like others: a tuple has none
        expression.test(dict[str, Any]().get)


def test_double_underscores_are_only_fields() -> None:
    assert holds("a.__class__ is None", a={"x": 1})
    assert holds("__builtins__ is None and __name__ is None")


RULES = ["a > 0", "b == 'x' or a is None", "path.matches('^a')", "not (a == 3)", "path.matches('b$') or c.d == 1"]


@given(
    st.lists(st.sampled_from(RULES), max_size=4),
    st.integers(-2, 5),
    st.sampled_from(["x", "y"]),
    st.sampled_from(["ab", "b", "a"]),
)
def test_all_rules_at_once_are_each_of_them(texts: list[str], a: int, b: str, path: str) -> None:
    expressions = [parse_expression(text) for text in texts]
    event: dict[str, Any] = {"a": a, "b": b, "path": path, "c": {"d": a}}
    assert bool(compile_all(expressions)(event.get)) == all(e.test(event.get) for e in expressions)


def test_fields_are_known_with_their_places() -> None:
    assert parse_expression("a > b.c and\n field('d') == 1").fields == (("a", 1, 1), ("b", 1, 5), ("d", 2, 2))

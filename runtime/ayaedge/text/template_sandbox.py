"""Jinja's sandbox with a meter: whatever a template does is paid for first (see `ayaedge.text.template_meter`).

Imports jinja2, which is slow to load, so only `ayaedge.text.template` imports this, when a template is rendered.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
    safe_range,
)
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from ayaedge.errors import PromptError
from ayaedge.text.template_costs import pay_call, pay_filter, pay_test
from ayaedge.text.template_meter import CALL, STEP, Meter

_LONGEST_DATE = 1000
_FARTHEST = 1 << 53
_STEP, _READ, _SAME, _WRITE, _MADE, _WRITTEN = ":step", ":read", ":same", ":write", ":made", ":written"
"""Filters that only the pass over a template's tree can name."""


class Generation(Extension):
    """`{% generation %}` marks what the assistant writes, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """The environment that transformers gives templates. `meter` is that of the rendering under way."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        self.meter = Meter({})
        self.filters["tojson"] = _to_json
        self.filters.update({name: self._paid(pay_filter, name, one) for name, one in self.filters.items()})
        self.tests.update({name: self._paid(pay_test, name, one) for name, one in self.tests.items()})
        for name, work in (
            (_STEP, _step),
            (_READ, _read),
            (_SAME, _same),
            (_WRITE, _write),
            (_MADE, _made),
            (_WRITTEN, _written),
        ):
            self.filters[name] = pass_context(functools.partial(work, self))
        self.globals["namespace"] = _Variables
        self.globals["range"] = _small_range
        del self.globals["lipsum"]  # for trying out pages; writes as much as it is asked to
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _now

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what is safe to call, and was paid for."""
        args, kwargs = __self._all_given(args, kwargs)
        pay_call(__self.meter, __obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an arithmetic operator that was paid for."""
        self.meter.operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item, or an attribute of that name."""
        if isinstance(argument, tuple):
            self.meter.read(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A method `format` in which every field is paid for."""
        if super().wrap_str_format(value) is None:
            return None
        text, named = value.__self__, value.__name__ == "format_map"
        formatter: SandboxedFormatter = (
            _MeteredEscapeFormatter(self, escape=text.escape)
            if isinstance(text, Markup)
            else _MeteredFormatter(self)
        )

        def formatted(*args: Any, **kwargs: Any) -> str:
            self.meter.spend(len(text) + CALL * text.count("{"))
            found: str = type(text)(
                formatter.vformat(text, () if named else args, args[0] if named else kwargs)
            )
            return found

        return functools.update_wrapper(formatted, value)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Hooks().visit(source), *args, **kwargs)

    def _whole(self, value: Any) -> Any:
        """A value that says how much it holds: of an iterator a list."""
        if hasattr(value, "__next__") and not isinstance(value, LoopContext):
            return self.meter.all_of(value)
        return value

    def _all_given(
        self, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(self._whole, arguments)), {name: self._whole(one) for name, one in named.items()}

    def _paid(self, pay: Callable[..., None], name: str, work: Any) -> Callable[..., Any]:
        """A filter or test that is paid for before it runs."""
        kind = getattr(getattr(work, "jinja_pass_arg", None), "name", "")

        @pass_context  # and so never worked out while a template is compiled
        def paid(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            if name != "first":
                value = self._whole(value)
            args, kwargs = self._all_given(args, kwargs)
            pay(self.meter, name, value, args, kwargs)
            first = {"context": context, "eval_context": context.eval_ctx, "environment": self}
            return work(*([first[kind]] if kind else ()), value, *args, **kwargs)

        return paid


class _Variables(Namespace):
    """Variables that a template may change; those inside of others are not written with them, which may be endless."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Hooks(NodeTransformer):
    """Puts what pays into a template's tree: before loops go round, and where values are read whole or made."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - as jinja2 names it
        step = self._step(node)
        self.generic_visit(node)
        if node.test is None:
            node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        else:
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return node

    def _visit_body(self, node: Any) -> nodes.Node:
        step = self._step(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return cast("nodes.Node", node)

    visit_Macro = visit_CallBlock = visit_Block = _visit_body  # noqa: N815

    def _step(self, node: nodes.Node) -> nodes.Expr:
        """What pays for one time through a body, whatever else there is in it."""
        inside = sum(1 for _ in node.find_all(nodes.Node))
        return _call(_STEP, nodes.Const(STEP * (1 + inside)), node)

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        fixed = sum(len(one.data) for one in node.nodes if isinstance(one, nodes.TemplateData))
        node.nodes = [
            one if isinstance(one, nodes.TemplateData) else _call(_WRITE, one, node) for one in node.nodes
        ]
        paid = nodes.ExprStmt(_call(_WRITTEN, nodes.Const(fixed), node), lineno=node.lineno)
        return [paid, node] if fixed else [node]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_call(_READ, one, node) for one in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _call(_READ, node.expr, node)
        for operand in node.ops:
            operand.expr = _call(_READ, operand.expr, node)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        node.node = _call(_SAME, node.node, node)  # Python would warn of a slice of a literal
        return _call(_MADE, node, node)

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _call(_READ, node.key, node)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call(_MADE, node, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call(_MADE, node, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call(_MADE, node, node) if node.ctx == "load" else node


def _call(name: str, value: nodes.Expr, place: nodes.Node) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=place.lineno, environment=place.environment)


def _step(environment: MeteredEnvironment, _: Context, units: int) -> bool:
    environment.meter.spend(units)
    return True


def _read(environment: MeteredEnvironment, _: Context, value: Any) -> Any:
    environment.meter.read(value)
    return value


def _same(_environment: MeteredEnvironment, _: Context, value: Any) -> Any:
    return value


def _made(environment: MeteredEnvironment, _: Context, value: Any) -> Any:
    environment.meter.spend(STEP + 8 * len(value))
    return value


def _write(environment: MeteredEnvironment, _: Context, value: Any) -> Any:
    environment.meter.write(environment.meter.size(value))
    return value


def _written(environment: MeteredEnvironment, _: Context, characters: int) -> None:
    environment.meter.write(characters)


class _MeteredFormatter(SandboxedFormatter):
    """Fields of `format`, each as wide as any number in its form."""

    _env: MeteredEnvironment

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """A value as text, if that is asked for."""
        self._env.meter.read(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        """The text of a value."""
        self._env.meter.read(value)
        self._env.meter.spend(sum(map(int, re.findall(r"\d+", format_spec))))
        return super().format_field(value, format_spec)


class _MeteredEscapeFormatter(_MeteredFormatter, SandboxedEscapeFormatter):
    pass


def _small_range(*bounds: Any) -> range:
    """A range of numbers that all have hashes of their own."""
    if any(isinstance(one, int) and abs(one) > _FARTHEST for one in bounds):
        raise PromptError(f"it counts beyond {_FARTHEST:,}")
    return safe_range(*bounds)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    if len(form) > _LONGEST_DATE:
        raise PromptError("it writes a date of more than 1000 characters")
    return datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

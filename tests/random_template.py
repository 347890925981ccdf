"""Random chat templates of what could go on for ever or fill the memory, nested in each other.

In the forms below T, N, L and A stand for a text, a number, a list and any of them.
"""

from __future__ import annotations

import random

_FORMS = {
    "T": [
        "'a'", "'ab\\n' * 50", "'<image>'", "messages[0].content", "('é' * 1000)", "ns.t", "t",
        "(T * N)", "(T + T)", "(T ~ A)", "(T ~ T)", "T|upper", "A|string", "L|join(T)", "L|tojson(indent=N)",
        "A|tojson",
        "T|center(N)", "T|indent(N, true)", "T|wordwrap(N)", "T|replace(T, T)", "T|truncate(N)", "T|urlize",
        "T|striptags", "T|escape", "T|urlencode", "('%s-%' ~ N ~ 'd')|format(A, 1)", "A|pprint", "T|reverse", "T|title",
        "(T).center(N)", "(T).ljust(N, 'b')", "(T).zfill(N)", "(T).expandtabs(N)", "(T).replace('', T)",
        "(T).join(L)", "('{:>' ~ N ~ '}').format(A)", "'{:{}}'.format(1, N)", "(T).translate({97: T})",
        "('%s' * 9) % ((A,) * 9)", "('%' ~ N ~ 'd') % 7", "('%*d' % (N, 1))", "(T)[::-1]", "(T)[1:]", "f(A)",
        "(T if A else T)", "cycler(T, T).next()", "(T|attr('center'))(N)", "strftime_now(T)",
    ],
    "N": [
        "0", "1", "2", "3", "7", "1000", "65536", "10**6", "10**9", "2**62", "9**9", "-1", "L|length", "T|length",
        "(N + N)", "(N * N)", "(N ** N)", "(N // 7)", "(N % 10)", "N|round(N)", "(T).count(T)", "T|wordcount",
        "(T).find(T)", "(2).bit_length()", "L|sum",
    ],
    "L": [
        "messages", "range(3)", "range(99)", "range(99999)", "ns.l", "[A, A]", "(A, A)", "[L, L]",
        "(L + [A])", "(L * N)",
        "L|list", "T|list", "L|batch(N, A)|list", "L|slice(N)|list", "L|map('string')|list", "L|select('in', L)|list",
        "L|map('center', N)|list", "L|unique|list", "L|reverse|list", "(T).split()", "(T).split(T)", "(L)[::-1]",
        "{1: A, 2: L}.items()|list", "{1: A}|dictsort", "[[1]]|sum(start=L)", "(T).splitlines()", "[T]|sort",
        "dict(a=A).keys()|list", "{}.fromkeys(L)|list", "(T).encode('punycode')|list", "(7).to_bytes(N, 'big')|list",
    ],
    "A": ["T", "T", "N", "L", "L", "(A == A)", "(A in L)", "(T < T)", "(A and A)", "{1: A}", "(not A)"],
}  # fmt: skip
_STATEMENTS = [
    "{{ A }}", "{{ T }}{{ N }}", "{% set t = T %}S", "{% set ns.t = T %}S", "{% set ns.l = L %}S",
    "{% for i in L %}SS{% endfor %}", "{% for i in range(99999) %}S{% endfor %}",
    "{% for i in range(9999) if A %}S{% endfor %}", "{% for i in [[1], [2]] recursive %}{{ loop(L) }}S{% endfor %}",
    "{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}S",
    "{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}S{{ ns.l }}",
    "{% for i in range(60) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}S{{ {ns.l: 1} }}",
    "{% for i in range(9999) %}{% set ns.l = [ns.l, T] %}{% endfor %}S",
    "{% set t %}S{% endset %}{{ t * 99 }}", "{% filter upper %}S{% endfilter %}",
    "{% filter indent(N) %}S{% endfilter %}",
    "{% macro g(x) %}S{{ g(x) }}{{ g(x) }}{% endmacro %}{{ g(A) }}", "{% call f(A) %}S{% endcall %}",
    "{% autoescape true %}{{ T }}S{% endautoescape %}", "{% if A %}S{% else %}{{ A }}{% endif %}",
    "{% generation %}S{% endgeneration %}",
]  # fmt: skip
_START = "{% set ns = namespace(t='a', l=[1]) %}{% set t = 'b' %}"
_START += "{% macro f(x) %}{{ x }}{{ caller() if caller }}{% endmacro %}"
_LEAVES = {"T": 7, "N": 12, "L": 5, "A": 5}
"""How many of the first forms hold no others, or few."""


class RandomTemplate:
    """One template, the same for the same number."""

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)

    def text(self) -> str:
        """Its source."""
        return _START + "".join(self._statement(3) for _ in range(self._random.randint(1, 4)))

    def _statement(self, depth: int) -> str:
        form = self._random.choice(_STATEMENTS)
        parts = form.replace("S", "\0").split("\0")
        filled = [self._filled(part, depth) for part in parts]
        return (
            "".join(part + (self._statement(depth - 1) if depth else "<image>") for part in filled[:-1])
            + filled[-1]
        )

    def _filled(self, form: str, depth: int) -> str:
        return "".join(self._expression(one, depth - 1) if one in _FORMS else one for one in form)

    def _expression(self, kind: str, depth: int) -> str:
        forms = _FORMS[kind] if depth > 0 else _FORMS[kind][: _LEAVES[kind]]
        form = self._random.choice(forms)
        return self._filled(form, depth) if depth > 0 else form if kind != "A" else self._expression("N", 0)

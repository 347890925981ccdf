"""Chat templates come from strangers: whatever one does is bounded, and ordinary ones write what they always wrote."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ayaedge import CheckpointError, PromptError
from ayaedge.bundle import read_manifest
from ayaedge.text.prompt import Message, PromptBuilder
from ayaedge.text.template import ChatTemplate
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from grammar_machine import DEMO
from random_template import RandomTemplate

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it? <b> & 'c'\n"}]},
    {"role": "assistant", "content": "A house.\n\n"},
    {"role": "user", "content": "  And\tthis?  "},
]
NAMED = {"bos_token": "<BOS>", "eos_token": "<EOS>", "pad_token": "<PAD>"}
LONG = "{% set x = 'a' * 1000000 %}"
LOOP, KEPT = "{% for i in range(9999) %}", "{% set ns = namespace(x=[]) %}"
MANY_WORDS = "{% set w = ('a,' * 9999).split(',')|select %}"
GROWING = "{{% set ns = namespace(x={}) %}}{{% for i in range(60) %}}{{% set ns.x = {} %}}{{% endfor %}}"
LISTS, TUPLES = GROWING.format("[1]", "[ns.x, ns.x]"), GROWING.format("(1,)", "(ns.x, ns.x)")
REFUSED = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that drop everything": LOOP + "{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a large body": "{% for a in range(99999) %}" + "{% set x = a.b %}" * 300 + "{% endfor %}",
    "a loop in itself": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "a tower of powers": "{{ 9**(9**9) }}",
    "repeated squaring": GROWING.format("3", "ns.x * ns.x"),
    "a long text": "{{ 'a' * 10**9 }}",
    "a long list": "{{ 10**9 * [1] }}",
    "many long texts": KEPT + LOOP + "{% set ns.x = [ns.x, 'a' * 99999] %}{% endfor %}",
    "many slices": LONG + KEPT + LOOP + "{% set ns.x = [ns.x, x[i:]] %}{% endfor %}",
    "a doubled text": GROWING.format("'a'", "ns.x ~ ns.x"),
    "a list of lists written": LISTS + "{{ ns.x }}",
    "a list of lists compared": LISTS + "{{ ns.x == ns.x[0] }}",
    "a list of lists searched": LISTS + "{{ 2 in ns.x }}",
    "a list of lists as JSON": LISTS + "{{ ns.x|tojson }}",
    "a list of lists formatted": LISTS + "{{ '{}'.format(ns.x) }}{{ '%s' % ns.x }}",
    "a tuple of tuples as a key": TUPLES + "{% set d = {ns.x: 1} %}",
    "a tuple of tuples looked up": TUPLES + "{{ {}[ns.x] }}",
    "widths of %": "{{ '%1000000000d' % 1 }}",
    "a width behind a name in brackets": "{{ '%(a(b)c)1000000000s' % {'a(b)c': 1} }}",
    "a given width of %": "{{ '%*d' % (10**9, 1) }}",
    "many fields of %": "{{ ('%(a)s' * 100000) % {'a': 'b' * 100000} }}",
    "widths of format": "{{ '{:>1000000000}'.format(1) }}",
    "a given width of format": "{{ '{:{}}'.format(1, 10**9) }}",
    "a width of a text marked as safe": "{{ ('{:>1000000000}'|safe).format(1) }}",
    "many fields of format": "{{ ('{0}' * 99999).format('b' * 99999) }}",
    "center": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "rjust": "{{ 'a'.rjust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\\t'.expandtabs(10**9) }}",
    "replace": LONG + "{{ x.replace('', x) }}",
    "join": LONG + "{{ x.join(x) }}",
    "translate": LONG + "{{ x.translate({97: x}) }}",
    "to_bytes": "{{ (5).to_bytes(10**9, 'big') }}",
    "encode": LONG + "{{ x.encode('punycode') }}",
    "|center": "{{ 'a'|center(10**9) }}",
    "|attr": "{{ ('a'|attr('center'))(10**9) }}",
    "|map": "{{ ['a']|map('center', 10**9)|list }}",
    "|replace": LONG + "{{ x|replace('a', x) }}",
    "|join": LONG + "{{ x|join(x) }}",
    "|indent": "{{ 'a\\nb'|indent(10**9) }}",
    "|wordwrap": "{{ ('a ' * 100000)|wordwrap(1) }}",
    "|batch": "{{ [1]|batch(10**9, 0)|list }}",
    "|slice": "{{ [1]|slice(10**9)|list }}",
    "|tojson": "{{ [1]|tojson(indent=10**9) }}",
    "|tojson of what is deep": GROWING.format("[1]", "[ns.x]") + "{{ ([ns.x] * 9999)|tojson(indent=999) }}",
    "looking through a range": LOOP + "{{ 'a' in range(99999) }}{% endfor %}",
    "|select in a range": LOOP + "{{ messages|select('in', range(99999))|list }}{% endfor %}",
    "|round": "{{ 5|round(-10**9) }}",
    "|round up": "{{ 5|round(10**9, 'ceil') }}",
    "|sum": "{{ ([[1] * 999] * 999)|sum(start=[]) }}",
    "|urlize": "{{ ('http://a.b ' * 9999)|urlize }}",
    "|striptags": "{{ ('<' * 99999)|striptags }}",
    "|format": "{{ '%1000000000s'|format('x') }}",
    "|join of an iterator": MANY_WORDS + "{{ ('a' * 100000).join(w) }}",
    "|join of an iterator that is safe": MANY_WORDS + "{{ ('a' * 100000)|safe|join(w) ~ ('a' * 100000).join(w) }}",
    "|map of a long path": "{{ range(4000)|map(attribute='real.' * 20000 ~ 'real')|list }}",
    "|map of a long path in a text": "{{ ('a' * 4000)|map(attribute='0.' * 20000 ~ '0')|list }}",
    "|sort by a long path": "{{ range(4000)|sort(attribute='real.' * 20000 ~ 'real') }}",
    "|selectattr of a long path": "{{ range(4000)|selectattr('real.' * 20000 ~ 'real')|list }}",
    "|groupby a long path": "{{ range(4000)|groupby('real.' * 20000 ~ 'real') }}",
    "rfind": "{{ ('a' * 500000).rfind('ab' ~ 'a' * 200000) }}",
    "rsplit": "{{ ('a' * 60000).rsplit('ab' ~ 'a' * 30000) }}",
    "strip": "{{ ('a' * 99999).strip('b' * 99999 ~ 'a') }}",
    "|trim": "{{ ('a' * 99999)|trim('b' * 99999 ~ 'a') }}",
    "ranges searched": LOOP + "{% if 1.5 in range(99999) %}{% endif %}{% endfor %}",
    "ranges joined": LOOP + "{% if range(99999)|join %}{% endif %}{% endfor %}",
    "ranges sorted": LOOP + "{% if range(99999)|sort %}{% endif %}{% endfor %}",
    "ranges counted": LOOP + "{{ range(99999).count(1.5) }}{% endfor %}",
    "ranges as arguments": LOOP + "{{ cycler(*range(99999)) }}{% endfor %}",
    "keys of one hash": "{% set p = 2**61 - 1 %}{{ dict(range(0, 60000 * p, p)|batch(2)) }}",
    "dates": "{{ strftime_now('%c' * 9999) }}",
    "lipsum": "{{ lipsum(10**9) }}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a block without end": "{% block a %}{{ self.a() }}{% endblock %}",
    "text in loops": "{% for i in range(99999) %}" + "a" * 99999 + "{% endfor %}",
    "text in macros": "{% macro f() %}" + "a" * 99999 + "{% endmacro %}" + LOOP + "{% set x = f() %}{% endfor %}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "signs": "{{ " + "-" * 9000 + "1 }}",
    "sums": "{{ 1" + "+1" * 9000 + " }}",
    "filters behind filters": "{{ 1" + "|upper" * 5000 + " }}",
    "attributes of attributes": "{{ x" + ".a" * 9000 + " }}",
    "loops in loops in loops": "{% for a in x %}" * 1000 + "{% endfor %}" * 1000,
    "too many words": "{{ a }}" * 10000,
    "too long": "a" * 2_000_000,
}  # fmt: skip
CPU_SECONDS, MEMORY = 10.0, 200e6
"""Of one template; the slowest takes 0.3 s on an idle machine, and unbounded it would take minutes or for ever."""


def render(source: str, messages: object = MESSAGES) -> str:
    return ChatTemplate(source).render(messages=messages, add_generation_prompt=True, **NAMED)


def seconds_of(work: Callable[[], object]) -> float:
    """Processor seconds of this thread, which nothing else on the machine lengthens."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_would_never_end_is_refused_at_once(case: str) -> None:
    def refused() -> None:
        with pytest.raises(
            PromptError, match=r"^the chat template .*(work|text|than|nested|undefined|beyond)"
        ):
            render(REFUSED[case])

    assert seconds_of(refused) < CPU_SECONDS


@pytest.mark.parametrize(
    "case", ["many long texts", "many slices", "a doubled text", "|join", "text in macros"]
)
def test_a_template_that_would_fill_the_memory_is_refused_before(case: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PromptError):
            render(REFUSED[case])
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def test_what_may_be_spent_grows_with_the_conversation() -> None:
    template = "{% for m in messages %}{% for n in range(500) %}{% endfor %}{% endfor %}"
    assert render(template, [{"role": "user", "content": "a" * 1000}] * 500) == ""
    with pytest.raises(PromptError, match="more work"):
        render(template, [{}] * 500)


def test_a_refused_template_is_a_fault_of_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("chat_template.jinja", "chat_template.json"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "chat_template.jinja").write_text(REFUSED["loops in loops"])
    with pytest.raises(CheckpointError, match=r"the chat template .* more work"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("images", [0, 2])
def test_a_template_writes_no_more_images_than_were_given(images: int) -> None:
    manifest = read_manifest(DEMO)
    template = "{% for i in range(9999) %}<image>{% endfor %}".replace(
        "<image>", manifest.image_prompt.placeholder
    )

    def refused() -> None:
        builder = PromptBuilder(replace(manifest, chat_template=template), lambda text: [1] * len(text))
        with pytest.raises(PromptError, match=f"more images than the {images} given"):
            builder.build([Message("user", "a", images)], [1] * images)

    assert seconds_of(refused) < CPU_SECONDS


def plain(source: str, **variables: Any) -> str:
    """What Jinja itself writes, as transformers sets it up."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    return environment.from_string(source).render(tools=None, documents=None, **variables)


def released_templates(released_files: Path, tiny: Path) -> list[str]:
    files = [*released_files.glob("*/chat_template.json"), *tiny.glob("chat_template.json")]
    found = [json.loads(path.read_text("utf-8"))["chat_template"] for path in files]
    return [*found, read_manifest(DEMO).chat_template]


def test_released_templates_write_what_jinja_writes(released_files: Path, tiny: Path) -> None:
    templates = released_templates(released_files, tiny)
    assert len(templates) >= 3
    for source in templates:
        for count in range(1, len(MESSAGES) + 1):
            variables: dict[str, Any] = {"messages": MESSAGES[:count], "add_generation_prompt": True, **NAMED}
            assert ChatTemplate(source).render(**variables) == plain(source, **variables)


def test_long_conversations_are_written(released_files: Path, tiny: Path) -> None:
    messages = [
        {"role": "user", "content": "word " * 20},
        {"role": "assistant", "content": "a" * 1000},
    ] * 1000
    for source in released_templates(released_files, tiny):
        assert render(source, messages).count("a" * 1000) == 1000
    long = [{"role": "user", "content": "word " * 1_000_000}]
    assert len(render(read_manifest(DEMO).chat_template, long)) > 5_000_000


ORDINARY = """
{%- set ns = namespace(seen=0, last='', all=[]) -%}
{%- macro shown(m, extra='') -%}[{{ m.role|upper|center(12) }}{{ extra }}{{ caller() if caller }}]{%- endmacro -%}
{%- for m in messages if m.role != 'system' -%}
  {%- set ns.seen = ns.seen + loop.index0 % 2 -%}
  {%- set ns.all = ns.all + [m.role] -%}
  {{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}
  {{- shown(m, '!' ~ loop.revindex ~ 1.5) }}{% call shown(m) %}{{ m.content is string }}{% endcall %}
  {%- if m.content is string and 'this' in m.content %}{{ m.content.strip().split('?')[0] | trim
  | replace('A', 'B', 1) }}
  {%- elif m.content is iterable %}{{ m.content|selectattr('type', 'equalto', 'text')|map(attribute='text')
  |join('; ') }}
  {{- m.content|tojson(indent=2) }}{{ m.content|length }}{% endif -%}
  {%- if loop.index > 5 %}{% break %}{% endif -%}
{%- else %}none{% endfor -%}
{{ '%-5s|%03d' % ('a', 7) }}{{ '{:>6}|{x!r}'.format('b', x=[1]) }}{{ 2 ** 10 // 3 * -1 + 7 / 2 }}
{{ messages[::-1][0].role }}
{% set text %}a{{ ns.seen }}b{% endset %}{{ text * 2 }}{% filter indent(2, first=true) %}one
two{% endfilter %}{{ ['b', 'a', 'b']|unique|sort|list }}{{ {'b': 1, 'a': (2, 3)}|dictsort }}
{{ range(3)|batch(2, 0)|list }}
{{ messages|groupby('role')|map('first')|list }}{{ [3, 1.5]|sum|round(1) }}
{{ none is none }}{{ missing is defined }}{{ missing }}
{{ ('<a>'|e) ~ '<b>' }}{{ '<a>'|safe }}{% autoescape true %}{{ '<' ~ '>' }}{% endautoescape %}
{{ dict(a=1).items()|list }}
{{- [[1, [2, 3]], {'k': 'v'}] }}{{ 'abc'[1:] }}{{ 'ab'|reverse }}{{ [1, 2]|max }}{{ ns.all|join(',') }}
{{ 12 is divisibleby 3 }}
{%- for a in [[1, [2]], [3]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}{{ 'x y'|title }}
{{ 'a\tb'.expandtabs(4) }}
{{- messages|map(attribute='role')|first }}{{ (messages|last).role }}{{ 'äé'|urlencode }}
{{ cycler('p', 'q').next() }}{{ 1 < 2 <= 2 }}
"""


def test_nothing_of_a_conversation_is_held_when_it_is_written() -> None:
    template = ChatTemplate("{{ messages == [1] }}")
    template.render(messages=MESSAGES)
    assert template._compiled.environment.meter._kept == [{}]


def test_ordinary_constructs_write_what_jinja_writes() -> None:
    variables: dict[str, Any] = {"messages": MESSAGES, "add_generation_prompt": True, **NAMED}
    assert ChatTemplate(ORDINARY).render(**variables) == plain(ORDINARY, **variables)


def check_random(numbers: range) -> int:
    """How many of these templates are refused; each ends within a second, and takes no more memory than is allowed."""
    refused = 0
    for number in numbers:
        source = RandomTemplate(number).text()
        start = time.thread_time()
        try:
            assert isinstance(render(source), str)
        except PromptError:
            refused += 1
        assert time.thread_time() - start < 2 * CPU_SECONDS, source
    return refused


def test_random_templates_end_or_are_refused() -> None:
    assert 20 < check_random(range(40)) < 40


@pytest.mark.slow
def test_many_random_templates_end_or_are_refused_within_a_bound_of_memory() -> None:
    tracemalloc.start(1)
    try:
        for number in range(0, 10_000, 20):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with suppress(PromptError):
                render(RandomTemplate(number).text())
            assert tracemalloc.get_traced_memory()[1] - before < MEMORY, number
    finally:
        tracemalloc.stop()
    check_random(range(10_000))

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayaedge import AyaEdgeError, InvalidOptionError
from ayaedge.grammar.schema import grammar_text
from grammar_machine import EndlessError, Machine, demo_machine


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with demo_machine() as found:
        yield found


UNUSABLE = {
    "counts that run backwards": 'root ::= "a"{5,3}',
    "deep parentheses": f"root ::= {'(' * 10_000}[a]{')' * 10_000}",
    "a long chain": "root ::= a0\n" + "".join(f"a{n} ::= a{n + 1}\n" for n in range(9000)) + 'a9000 ::= "x"',
    "empty parts that double": "root ::= a0\n"
    + "".join(f"a{n} ::= a{n + 1} a{n + 1}\n" for n in range(30))
    + 'a30 ::= "x"?',
    "recursion without a character": 'root ::= b root\nb ::= c\nc ::= ""',
    "empty repetition": 'root ::= ("a"?)*',
    "no end": 'root ::= "a" root',
    "a dead end": "root ::= [z-a]",
    "NUL in a literal": 'root ::= "\\x00"',
    "NUL": 'root ::= "a"\0',
    "half a character": 'root ::= "\\ud83d"',
    "no text": "\ud800",
    "a token": 'root ::= <[1]> "a"',
    "a token that is not": 'root ::= !<[1]> "a"',
    "a count that is taken as endless": 'root ::= "a"{0,3000}',
    "a count that is too large": 'root ::= "a"{3000}',
    "an endless count": f'root ::= "a"{{{"9" * 50}}}',
    "nothing": "",
    "a comment": "# root",
    "another root": 'start ::= "a"',
    "an undefined rule": "root ::= a",
    "a rule that is not even used": 'root ::= "a" b{0}',
    "two definitions": 'root ::= "a"\nroot ::= "b"',
    "an unknown escape": 'root ::= "\\q"',
    "an open literal": 'root ::= "a',
    "an open class": "root ::= [a",
    "an empty class": "root ::= []",
    "a negated empty class": "root ::= [^]",
    "a lonely count": "root ::= *",
    "a closing parenthesis": 'root ::= "a")',
    "an open parenthesis": 'root ::= ("a"',
    "a second line that goes on": 'root ::= "a"\n| "b"',
    "too much": 'root ::= "a"' + " " * 10**6,
    "a count of nothing": 'root ::= "a" "b"{0}',
    "counts of counts": 'root ::= "a"{2}{2}',
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_grammar_that_cannot_be_followed_is_refused(name: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"^grammar"):
        grammar_text(grammar=UNUSABLE[name])


AMBIGUOUS = {
    "ways that double": "root ::= a0\n"
    + "".join(f"a{n} ::= a{n + 1} | a{n + 1}\n" for n in range(60))
    + 'a60 ::= "x"',
    "beginnings that double": "root ::= a0\n"
    + "".join(f'a{n} ::= a{n + 1} "p" | a{n + 1} "q"\n' for n in range(30))
    + 'a30 ::= "x"',
    "left recursion": 'root ::= root "a" | "b"',
    "left recursion behind what may be empty": 'root ::= x root "a" | "b"\nx ::= "c"?',
    "counts that multiply": 'root ::= ("a" "b"{0,100}){50}',
    "a count of an empty text": 'root ::= ""*',
    "recursion on all sides": "root ::= e\ne ::= "
    + " | ".join(f'e "{mark}" e' for mark in "+-*/^%&<>=")
    + ' | "(" e ")" | [0-9]+ | [a-z]+\n'
    + "".join(f'r{n} ::= r{n + 1} | "x" r{n + 1} | r{n + 1} "x" | r{n + 1} r{n + 1}\n' for n in range(12))
    + 'r12 ::= "x" | e\n',
}
"""What llama.cpp could not bear, or took ever longer for."""


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_grammar_is_followed_or_said_to_be_too_hard(machine: Machine, name: str) -> None:
    """The work for each token is bounded, so a cancellation is seen after it."""
    grammar = grammar_text(grammar=AMBIGUOUS[name].replace("root ::= e\n", "root ::= r0\n"))
    try:
        machine.walk(grammar, random.Random(0), 20, most=60)
    except AyaEdgeError as error:
        assert "too ambiguous" in str(error)
    except EndlessError:
        pass


GOOD_GRAMMARS = {
    'root ::= "a" | "b" # one of two\n': (["a", "b"], ["c", ""]),
    "root ::= item+\nitem ::= [a-c\\-] (\",\" ws)? \n\nws ::= [ \\t]*": (["a,  b-c"], ["", "d"]),
    'root ::= (\n  "x" |\n  "y"\n){2,3} .\r\n': (["xyक", "xxxx"], ["xx"]),
    'root ::= "\\"\\x41\\u00e9\\U0001F388" [^a-z\\]]': (['"Aé🎈A'], ['"Aé🎈a']),
    'root ::= expr\nexpr ::= [0-9] tail\ntail ::= ("+" expr)?': (["1", "1+2+3"], ["1+"]),
    'root ::= ""': ([""], ["a"]),
    'root ::= ("ab"){2} "b"?': (["abab", "ababb"], ["ab"]),
    'root ::= [a-z]* "b" | "a"* "c"': (["ab", "bbb", "aac"], ["aa", ""]),
    'root ::= root "+" root | [0-9]': (["1", "1+2+3"], ["1+", ""]),
    'root ::= "[" [-a&|~#"\\x5E-] "]"': (["[-]", "[&]", "[^]", '["]'], ["[b]"]),
}  # fmt: skip


@pytest.mark.parametrize("grammar", GOOD_GRAMMARS)
def test_a_good_grammar_is_followed(machine: Machine, grammar: str) -> None:
    good, bad = GOOD_GRAMMARS[grammar]
    text = grammar_text(grammar=grammar)
    assert [one for one in good if not machine.accepts(text, one)] == []
    assert [one for one in bad if machine.accepts(text, one)] == []


grammar_parts = st.sampled_from(
    ['"a"', '"ab"', "[a-c]", "[^a]", ".", "a", "b", "root", "(", ")", "|", "*", "+", "?", "{2}", "{0,2}", "{1,}", " ",
     "\n", '""', "\nroot ::= ", "\na ::= ", "\nb ::= ", "#", "\\", "<", "{5,3}", "é", "::=", "-"]
)  # fmt: skip


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.text(max_size=40)
    | st.lists(grammar_parts, max_size=40).map(lambda parts: 'root ::= "a" ' + "".join(parts))
)
def test_any_text_as_a_grammar_is_refused_or_works(machine: Machine, grammar: str) -> None:
    try:
        text = grammar_text(grammar=grammar)
        machine.walk(text, random.Random(0), 10, most=30)
    except (InvalidOptionError, EndlessError):
        return
    except AyaEdgeError as error:
        assert "too ambiguous" in str(error)

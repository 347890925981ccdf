"""Templates in the manner of other models': what bounds those of strangers does not get in their way."""

from __future__ import annotations

import pytest

from ayaedge.text.template import ChatTemplate

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%Y")|length|string %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}
{%- set messages = messages[1:] %}{%- endif %}
{{- '<|start|>' ~ (messages|selectattr('role', 'equalto', 'system')|list|length) ~ date_string ~ system }}
{%- for message in messages %}
{{- '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}"""
ALTERNATING = """{%- set ns = namespace() %}{%- set ns.index = 0 %}
{%- for message in messages[1:] %}
{%- if (message["role"] == "user") != (ns.index % 2 == 0) %}{{- raise_exception("roles") }}{%- endif %}
{%- set ns.index = ns.index + 1 %}{%- endfor %}
{%- for message in messages[1:] %}{%- if message["role"] == "user" %}
{{- "[INST] " + (messages[0].content + "\n\n" if loop.last else "") + message["content"] + "[/INST]" }}
{%- else %}{{- " " + message["content"]|trim + eos_token }}{%- endif %}{%- endfor %}"""
THINKING = """{%- set ns = namespace(open=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.open and message.role == "user" and not (message.content.startswith('<tool>') and
message.content.endswith('</tool>')) %}{%- set ns.open = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}
{%- for message in messages %}{%- set content = message.content %}{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.rsplit('</think>', 1)[-1].strip('\n') %}{%- endif %}
{{- message.role + ':' + content + '\n' }}{%- if loop.index0 > ns.last %}{{- thought.strip('\n') }}{%- endif %}
{%- endfor %}"""
ANSWER = "<think>\nhm. so\n</think>\n\nYes, it is. "


def conversation(turns: int, words: str) -> list[dict[str, str]]:
    pairs = [{"role": "user", "content": f" {words} "}, {"role": "assistant", "content": ANSWER + words}]
    return [{"role": "system", "content": "Be brief.\n"}, *pairs * turns]


@pytest.mark.parametrize("template", [CHATML, HEADERS, ALTERNATING, THINKING])
@pytest.mark.parametrize(
    ("turns", "words"), [(1, "zebra"), (300, "zebra. b, c\n" * 9), (1, "zebra. b, c\n" * 90_000)]
)
def test_templates_of_other_families_write_every_turn(template: str, turns: int, words: str) -> None:
    written = ChatTemplate(template).render(
        messages=conversation(turns, words), bos_token="<s>", eos_token="</s>", add_generation_prompt=True
    )
    assert written.count("Yes, it is.") == turns
    assert written.count("zebra") == 2 * turns * words.count("zebra")

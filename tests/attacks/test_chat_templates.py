"""A stranger's chat template: what it may not do, and what it may cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from adapterhub.core.errors import ChatTemplateRefused, UsageProblem
from adapterhub.formats.prompts.chat import LIMIT_OUTPUT_BYTES, render_chats
from adapterhub.formats.prompts.form import PromptForm, Turn, template_digest
from adapterhub.formats.prompts.rendering import prompt_texts, prompt_tokens
from tests.support.run_library import write_tokenizer

CHAT: list[Turn] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi <there> "}]

LIMITS = {
    "range": "{% for i in range(10**12) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "constant": "{{ 'a' * 10**9 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "doubling": "{% set n = namespace(a='aaaa') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "lists": "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "centred": "{{ 'a' | center(10**10) }}",
    "padded": "{{ '%999999999d' % 1 }}",
    "formatted": "{{ '{:>999999999}'.format(1) }}",
    "long": "{% for i in range(99999) %}0123456789{% endfor %}",
    "recursive": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "deep": "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "nested": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
}
FORBIDDEN = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__.json }}",
    "undefined": "{{ nothing.__init__.__globals__ }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "changed": "{{ messages.append(1) }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
}
BROKEN = {
    "syntax": "{% for %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "lipsum": "{{ lipsum(5) }}",
    "clock": "{{ strftime_now('%d') }}",
}


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param(template, reason, id=name)
        for reason, found in (("limits", LIMITS), ("forbidden", FORBIDDEN), ("broken", BROKEN))
        for name, template in found.items()
    ],
)
def test_hostile_template_is_ended_and_refused(template: str, reason: str) -> None:
    with pytest.raises(ChatTemplateRefused) as refusal:
        render_chats(template, [CHAT])
    assert refusal.value.reason == reason


def test_nothing_of_an_underscore_name_reaches_the_prompt() -> None:
    template = "{{ '' | attr('__class__') }}{{ messages.__class__ }}{{ self._TemplateReference__context }}"
    assert render_chats(template, [CHAT]) == [""]


def test_longest_prompt_passes_and_one_more_byte_does_not() -> None:
    turn: list[Turn] = [{"role": "user", "content": "é" * (LIMIT_OUTPUT_BYTES // 2)}]
    assert len(render_chats("{{ messages[0].content }}", [turn])[0]) == LIMIT_OUTPUT_BYTES // 2
    with pytest.raises(ChatTemplateRefused):
        render_chats("{{ messages[0].content }}!", [turn])


def test_template_may_refuse_a_conversation_in_its_own_words() -> None:
    with pytest.raises(UsageProblem, match="refuses the prompt: no system text, \\\\x1b"):
        render_chats("{{ raise_exception('no system text, \x1b[31m') }}", [CHAT])


def test_template_of_a_real_family_gives_what_transformers_gives(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(write_tokenizer(tmp_path))
    for template in FAMILIES:
        tokenizer.chat_template = template
        form = PromptForm(form="chat", chat_template=template, chat_template_sha256=template_digest(template))
        wanted = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        variables = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        assert render_chats(template, [CHAT], variables=variables) == [wanted]
        assert prompt_texts(form, [CHAT], tokenizer) == [wanted]  # the base's own template, as it is the same
        tokenizer.chat_template = "another"
        assert prompt_texts(form, [CHAT], tokenizer) == [wanted]
        (tokens,) = prompt_tokens(form, [CHAT], tokenizer)
        assert tokens == tokenizer(wanted, add_special_tokens=False)["input_ids"]


FAMILIES = [
    # ChatML with a default system text
    (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}"
        "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # headers, a namespace, trimmed content, special tokens, an optional clock
    (
        "{{- bos_token }}\n{%- if strftime_now_of_today is defined %}\n  {%- set date = strftime_now_of_today('%d') %}\n"
        "{%- else %}\n  {%- set date = '26 Jul' %}\n{%- endif %}\n{%- set ns = namespace(system='') %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n  {%- set ns.system = messages[0]['content'] | trim %}\n"
        "  {%- set messages = messages[1:] %}\n{%- endif %}\n{{- '<|header|>' + ns.system + date }}\n"
        "{%- for message in messages %}\n  {{- message.content | trim + eos_token }}\n{%- endfor %}"
    ),
    # tools, JSON, loop controls, a marked answer, indented blocks
    (
        "{% for m in messages %}\n  {% if m.role == 'tool' %}{% continue %}{% endif %}\n"
        "  {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}\n"
        "{{ m | tojson }} {{ '%02d' % loop.index }} {{ m.content.strip().split(' ')[-1] }}\n{% endfor %}"
        "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
    ),
]

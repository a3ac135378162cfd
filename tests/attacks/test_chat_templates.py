"""A stranger's chat template: what it may not do, and what it may cost."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from adapterhub import Installed, Library
from adapterhub.core.digests import canonical_json
from adapterhub.core.errors import ChatTemplateRefused, UsageProblem
from adapterhub.formats.manifest import MOST_VALUES
from adapterhub.formats.prompts.form import (
    LIMIT_OUTPUT_BYTES,
    PromptForm,
    Turn,
    prompt_texts,
    prompt_tokens,
    render_chats,
    template_digest,
)
from adapterhub.formats.release import Release
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.transfer import copy
from tests.support.command_line import Adapt
from tests.support.run_library import write_tokenizer
from tests.support.tiny import make_adapter

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


@pytest.mark.slow
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


def test_nothing_but_run_renders_a_template(tmp_path: Path) -> None:
    jinja = LIMITS["loops"]
    form = PromptForm(form="chat", chat_template=jinja, chat_template_sha256=template_digest(jinja))
    folder = make_adapter(tmp_path / "out")
    (folder / "chat_template.jinja").write_text(jinja)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    Library(tmp_path / "author").add(folder, name="hostile", prompt=form)
    publish(tmp_path / "published", Library(tmp_path / "author").find("hostile"), tmp_path / "author")
    adapt = Adapt(tmp_path)
    for command in (
        ["install", "hostile", "--from", "published"],
        ["show", "hostile"],
        ["verify", "hostile"],
        ["add", "out", "--name", "again", "--prompt", "chat"],
        ["list"],
    ):
        assert adapt(*command).exit_code in (0, 17), command  # 17: no base to verify it against
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime == before.ru_utime


@pytest.mark.parametrize(
    "prompt",
    [
        "raw",
        {"form": "template", "template": "{input.__class__}"},
        {"form": "chat", "chat_template": "x" * ((64 << 10) + 1), "chat_template_sha256": template_digest("x")},
        {"form": "chat", "chat_template": "{{ messages }}", "chat_template_sha256": template_digest("another")},
        {"form": "raw", "stop": [""] * 40_000},
        {"form": "raw", "stop": [""] * 50_001},
        {"form": "raw", "max_new_tokens": 10**15},
    ],
    ids=lambda value: str(value)[:40],
)
def test_build_with_a_hostile_form_is_refused_and_leaves_nothing(prompt: object, tmp_path: Path) -> None:
    build = Library(tmp_path / "author").add(make_adapter(tmp_path / "out"), name="hostile").build
    publish(tmp_path / "published", build, tmp_path / "author")
    (manifest,) = (tmp_path / "published").rglob("adapterhub.json")
    value = json.loads(manifest.read_bytes()) | {"behaviour": {"prompt": prompt}}
    manifest.chmod(0o644)
    manifest.write_bytes(canonical_json(value))
    adapt = Adapt(tmp_path)
    done = adapt("install", "hostile", "--from", "published")
    assert done.exit_code != 0
    is_parsed = str(prompt).count(",") < MOST_VALUES
    assert ("behaviour.prompt" if is_parsed else f"more than {MOST_VALUES} values") in done.stderr
    assert not list(adapt.library.installed())


def publish(place: Path, build: Installed, author: Path) -> None:
    library = Library(author)
    copy(Release(manifest=build.manifest, namespace=None, origin="author"), library, PublishedDirectory(place))

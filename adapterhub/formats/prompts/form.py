"""`PromptForm`: how an adapter wants to be asked. A manifest holds it as `behaviour.prompt`.

It is data. A `template` is plain text that is never evaluated; a `chat_template` is Jinja of a stranger, which
`formats.prompts.chat` renders in a sandbox. The reference page is `docs/reference/files.md`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, get_args

from adapterhub.core.arguments import parsed
from adapterhub.core.digests import Digest, Json, canonical_json, digest_of, parse_digest
from adapterhub.core.errors import (
    ChatTemplateRefused,
    DigestMismatch,
    Malformed,
    MissingExtra,
    UsageProblem,
    problem_list,
    shown,
)
from adapterhub.formats.documents import JSON_KINDS, DocumentReader

Form = Literal["raw", "template", "chat", "text"]
"""Who writes the frame around a question: no one, a plain text, a chat template, or the tokenizer of an encoder."""
FORMS: Final[tuple[Form, ...]] = get_args(Form)

MAX_TEXT_BYTES: Final = 16 << 10
"""Of `template` and `system`, in UTF-8."""
MAX_CHAT_TEMPLATE_BYTES: Final = 64 << 10
MAX_STOPS: Final = 16
MAX_STOP_BYTES: Final = 1 << 10
MAX_NEW_TOKENS: Final = 512

INPUT: Final = "{input}"
"""The place of the question in a `template`."""
_BRACES: Final = re.compile(r"\{\{|\}\}|\{input\}|[{}]")


class Turn(TypedDict):
    """One message of a conversation."""

    role: str
    content: str


Asked = str | Sequence[Turn] | tuple[str, str]
"""A question: a text, the turns of a conversation (form `chat`), or a pair of texts (form `text` with `pair`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptForm:
    """How an adapter wants to be asked.

    `form` defines what a prompt becomes: `raw` is the prompt itself; `template` replaces `{input}` with it, where `{{`
    and `}}` stand for braces; `chat` makes it the user's turn of a conversation; `text` is the prompt itself, for an
    encoder. `chat_template` is set only where the adapter was trained on another template than its base's.
    `add_special_tokens` None means the form's default: false for `chat`, true for the others. `stop` lists the texts
    that end an answer besides the end token.
    """

    form: Form
    template: str | None = None
    chat_template_sha256: Digest | None = None
    chat_template: str | None = None
    system: str | None = None
    generation_prompt: bool = True
    add_special_tokens: bool | None = None
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    pair: bool = False

    @property
    def has_special_tokens(self) -> bool:
        """Whether the tokenizer adds its special tokens to the prompt."""
        return self.form != "chat" if self.add_special_tokens is None else self.add_special_tokens

    @property
    def parts(self) -> tuple[str, str]:
        """The text before and after the question; empty unless the form is `template`."""
        before, after = _split(self.template) if self.template is not None else ("", "")
        return before, after

    @property
    def label(self) -> str:
        """The form in a few words for people, such as `chat, its own template, with a system text`."""
        words: list[str] = [self.form]
        if self.template is not None:
            words.append(f"`{shown(self.template, 60)}`")
        if self.chat_template is not None:
            words.append("its own chat template")
        if self.system is not None:
            words.append(f"system `{shown(self.system, 40)}`")
        if self.pair:
            words.append("pairs of texts")
        return ", ".join(words)

    def frame(self, text: str) -> str:
        """`text` in its frame, for the forms `raw`, `template` and `text`. It is replaced, never formatted."""
        before, after = self.parts
        return f"{before}{text}{after}"

    def turns(self, asked: str | Sequence[Turn]) -> list[Turn]:
        """Return the conversation for `asked`: the form's system text goes first unless `asked` brings its own."""
        said: list[Turn] = [Turn(role="user", content=asked)] if isinstance(asked, str) else list(asked)
        if self.system is None or (said and said[0]["role"] == "system"):
            return said
        return [Turn(role="system", content=self.system), *said]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value, without what is left at its default."""
        value: dict[str, Any] = {}
        for item in fields(self):
            held = getattr(self, item.name)
            if item.name == "form" or held != item.default:
                value[item.name] = list(held) if item.name == "stop" else held
        return value

    @classmethod
    def from_json(cls, value: Json, where: str = "prompt", *, knows_all: bool = True) -> PromptForm:
        """Read a form strictly; an unknown key is a problem unless `knows_all` is false, as in a manifest.

        Raises:
            Malformed: every problem with its path, such as `prompt.stop[2]: expected string, got null`.
            DigestMismatch: nothing is wrong but that `chat_template_sha256` belongs to another text.
        """
        reader = _Reader()
        form = reader.form(value, f"{where}.", knows_all=knows_all)
        if reader.problems or form is None:
            raise Malformed(
                problem_list(f"{shown(where, 200)}: not a prompt form", reader.lines),
                hint="a form is `raw`, `template`, `chat` or `text`, with the fields of that form",
            )
        if (problem := digest_problem(form)) is not None:
            raise DigestMismatch(f"{where}.chat_template", expected=problem[0], actual=problem[1])
        return form

    @classmethod
    @parsed
    def typed(
        cls,
        form: str | None,
        *,
        template: str | None = None,
        system: str | None = None,
        chat_template: str | None = None,
    ) -> PromptForm | None:
        """Return the form that options ask for, None without any: a template implies `template`, a system text `chat`.

        Raises:
            UsageProblem: the options contradict each other, or one is too long or of the wrong form.
        """
        if form is None:
            form = "template" if template is not None else "chat" if system is not None or chat_template else None
        if form is None:
            return None
        value = {"form": form, "template": template, "system": system, "chat_template": chat_template}
        if chat_template is not None:
            value["chat_template_sha256"] = template_digest(chat_template)
        reader = _Reader()
        made = reader.form({key: item for key, item in value.items() if item is not None}, "", knows_all=True)
        if reader.problems or made is None:
            path, text = reader.problems[0]
            option = "prompt" if path == "form" else path.replace("_", "-")
            raise UsageProblem(
                f"`--{option}`: {text}",
                hint="`--template TEXT` is a text around `{input}`, and `--system TEXT` begins a chat",
            )
        return made


RAW: Final = PromptForm(form="raw")


def template_digest(text: str) -> Digest:
    """Return the digest of a chat template's text, as a base's hints hold it."""
    return digest_of(text.encode("utf-8", "surrogatepass"))


def digest_problem(form: PromptForm) -> tuple[Digest, Digest] | None:
    """Return the stated and the real digest of the form's chat template, where they differ."""
    if form.chat_template is None or form.chat_template_sha256 is None:
        return None
    real = template_digest(form.chat_template)
    return None if real == form.chat_template_sha256 else (form.chat_template_sha256, real)


def read_form(reader: DocumentReader, value: Json, path: str) -> PromptForm | None:
    """Return the form in a larger document; its problems join those of `reader`. Unknown keys are passed over.

    `path` is the prefix of the keys' paths, such as `behaviour.prompt.`. None after a problem.
    """
    own = _Reader()
    form = own.form(value, path, knows_all=False)
    if form is not None and not own.problems and (problem := digest_problem(form)) is not None:
        own.say(
            f"{path}chat_template_sha256", f"expected {problem[1]}, the digest of `chat_template`, got {problem[0]}"
        )
    reader.problems += own.problems
    return None if own.problems else form


def unknown_keys(value: Mapping[str, Any]) -> list[str]:
    """Return the keys of a form's JSON value that this version does not know."""
    return sorted(set(value) - set(_KEYS))


_KEYS: Final = tuple(item.name for item in fields(PromptForm))
_OWN_KEYS: Final[Mapping[str, tuple[Form, ...]]] = {
    "template": ("template",),
    "chat_template_sha256": ("chat",),
    "chat_template": ("chat",),
    "system": ("chat",),
    "generation_prompt": ("chat",),
    "stop": ("raw", "template", "chat"),
    "max_new_tokens": ("raw", "template", "chat"),
    "pair": ("text",),
}
"""The forms that a key belongs to; keys that are not here belong to all."""


class _Reader(DocumentReader):
    kinds = JSON_KINDS
    null_is_absent = False

    def form(self, value: Json, path: str, *, knows_all: bool) -> PromptForm | None:
        """Return the form; None if the value is not an object or names no form."""
        if not isinstance(value, dict):
            self.wrong(path.rstrip(".") or "(top)", "object", value)
            return None
        if knows_all:
            self.known(value, _KEYS, path)
        form = self.take(value, "form", str, path, required=True)
        if form is None:
            return None
        if form not in FORMS:
            self.say(f"{path}form", f"expected one of {', '.join(FORMS)}, got {shown(form)}")
            return None
        for key, forms in _OWN_KEYS.items():
            if key in value and form not in forms:
                self.say(f"{path}{key}", f"belongs to the form {' or '.join(forms)}, and this one is {form}")
        made = PromptForm(
            form=form,
            template=self.bounded(value, "template", path, MAX_TEXT_BYTES, required=form == "template"),
            chat_template_sha256=self.parsed(
                self.take(value, "chat_template_sha256", str, path, required="chat_template" in value),
                parse_digest,
                f"{path}chat_template_sha256",
            ),
            chat_template=self.bounded(value, "chat_template", path, MAX_CHAT_TEMPLATE_BYTES),
            system=self.bounded(value, "system", path, MAX_TEXT_BYTES),
            generation_prompt=self.flag(value, "generation_prompt", path) is not False,
            add_special_tokens=self.flag(value, "add_special_tokens", path),
            stop=self.stops(value, path),
            max_new_tokens=self.take(value, "max_new_tokens", int, path),
            pair=self.flag(value, "pair", path) is True,
        )
        self.check_template(made.template, path)
        if made.max_new_tokens is not None and not 1 <= made.max_new_tokens <= MAX_NEW_TOKENS:
            self.say(f"{path}max_new_tokens", f"expected 1 to {MAX_NEW_TOKENS}, got {shown(made.max_new_tokens)}")
        return made

    def flag(self, value: Mapping[str, Any], key: str, path: str) -> bool | None:
        held: bool | None = self.take(value, key, bool, path)
        return held

    def bounded(
        self, value: Mapping[str, Any], key: str, path: str, limit_bytes: int, *, required: bool = False
    ) -> str | None:
        text: str | None = self.take(value, key, str, path, required=required)
        return None if text is None or not self.fits(text, f"{path}{key}", limit_bytes) else text

    def fits(self, text: str, path: str, limit_bytes: int) -> bool:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            self.say(path, "holds half a character (a surrogate)")
            return False
        if size > limit_bytes:
            self.say(path, f"at most {limit_bytes:,} bytes, got {size:,}")
        return size <= limit_bytes

    def stops(self, value: Mapping[str, Any], path: str) -> tuple[str, ...]:
        held = self.take(value, "stop", list, path) or []
        if len(held) > MAX_STOPS:
            self.say(f"{path}stop", f"{len(held)} entries, expected at most {MAX_STOPS}")
            return ()
        stops = self.texts(value, "stop", path)
        for at, text in enumerate(stops):
            if not text:
                self.say(f"{path}stop[{at}]", "is empty, and would end every answer at once")
            self.fits(text, f"{path}stop[{at}]", MAX_STOP_BYTES)
        return stops

    def check_template(self, template: str | None, path: str) -> None:
        if template is None:
            return
        try:
            _split(template)
        except ValueError as error:
            self.say(f"{path}template", str(error))


def _split(template: str) -> tuple[str, str]:
    """Return the text before and after the one `{input}`, with its braces undoubled.

    Raises:
        ValueError: there is not exactly one, or a brace stands alone.
    """
    sides, at = [""], 0
    for match in _BRACES.finditer(template):
        sides[-1] += template[at : match.start()]
        at = match.end()
        if match[0] == INPUT:
            sides.append("")
        elif len(match[0]) == 1:
            raise ValueError(f"`{match[0]}` stands alone at character {match.start() + 1}; `{match[0] * 2}` is a brace")
        else:
            sides[-1] += match[0][0]
        if len(sides) > 2:
            raise ValueError("expected exactly one `{input}`, got more")
    if len(sides) == 1:
        raise ValueError("expected exactly one `{input}`, got none")
    return sides[0], sides[1] + template[at:]


def template_of(before: str, after: str = "") -> str:
    """Return the template with `before` and `after` around the question, their braces doubled."""
    return INPUT.join(part.replace("{", "{{").replace("}", "}}") for part in (before, after))


Tokenizer = Any
"""A transformers tokenizer."""


def base_template(tokenizer: Tokenizer) -> str | None:
    """Return the base's chat template; None if it has none."""
    held = getattr(tokenizer, "chat_template", None)
    if isinstance(held, dict):
        held = held.get("default")
    return held if isinstance(held, str) and held else None


def base_template_digest(tokenizer: Tokenizer) -> Digest | None:
    """Return the digest of the base's chat template, to compare with a form's `chat_template_sha256`."""
    held = base_template(tokenizer)
    return None if held is None else template_digest(held)


def _is_base_s(digest: Digest | None, tokenizer: Tokenizer) -> bool:
    """Whether `digest` is that of the base's template, or of all of them where it has several, as in its hints."""
    if digest is None:
        return False
    held = getattr(tokenizer, "chat_template", None)
    named = [{"name": name, "template": text} for name, text in held.items()] if isinstance(held, dict) else []
    return digest == base_template_digest(tokenizer) or (bool(named) and digest == digest_of(canonical_json(named)))


def has_other_template(form: PromptForm, tokenizer: Tokenizer) -> bool:
    """Whether the form states the digest of a template that neither it nor the base holds: its prompts differ then."""
    if form.form != "chat" or form.chat_template is not None or form.chat_template_sha256 is None:
        return False
    return not _is_base_s(form.chat_template_sha256, tokenizer)


def prompt_texts(form: PromptForm, questions: Sequence[Asked], tokenizer: Tokenizer = None) -> list[str]:
    """Return the text of each prompt.

    Only the form `chat` needs the base's `tokenizer`: its template and special tokens.

    All prompts of a call share one child process where the adapter brings a chat template.

    Raises:
        UsageProblem: a question does not suit the form, the base has no chat template, or the template refuses it.
        ChatTemplateRefused: the adapter's own chat template is broken, forbidden, or passes a limit.
    """
    if form.form != "chat":
        return [form.frame(_text(form, asked)) for asked in questions]
    chats = [_chat(form, asked) for asked in questions]
    if form.chat_template is not None and not _is_base_s(form.chat_template_sha256, tokenizer):
        special = getattr(tokenizer, "special_tokens_map", None) or {}
        variables = {name: str(token) for name, token in special.items() if isinstance(token, str)}
        return render_chats(form.chat_template, chats, generation_prompt=form.generation_prompt, variables=variables)
    return [_base_chat(form, chat, tokenizer) for chat in chats]


def prompt_tokens(form: PromptForm, questions: Sequence[Asked], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the token ids of each prompt.

    Raises:
        UsageProblem, ChatTemplateRefused: as `prompt_texts`.
    """
    options = {"add_special_tokens": form.has_special_tokens}
    if form.pair:
        pairs = [_pair(asked) for asked in questions]
        return [list(tokenizer(first, second, **options)["input_ids"]) for first, second in pairs]
    return [list(tokenizer(text, **options)["input_ids"]) for text in prompt_texts(form, questions, tokenizer)]


def _text(form: PromptForm, asked: Asked) -> str:
    if isinstance(asked, str):
        return asked
    if form.pair:
        return "\t".join(_pair(asked))
    raise UsageProblem(
        f"the prompt form `{form.form}` takes one text, not a conversation", hint="pass one prompt, or use `--chat`"
    )


def _pair(asked: Asked) -> tuple[str, str]:
    """Return the two texts of a pair; one text is split at its one tab."""
    parts = asked.split("\t") if isinstance(asked, str) else asked
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise UsageProblem("this adapter takes pairs of texts", hint="put one tab between the two")
    return str(parts[0]), str(parts[1])


def _chat(form: PromptForm, asked: Asked) -> list[Turn]:
    if not isinstance(asked, str) and not all(isinstance(turn, dict) for turn in asked):
        raise UsageProblem(
            "the prompt form `chat` takes a text or a conversation, not a pair of texts", hint="pass one text"
        )
    return form.turns(asked)  # type: ignore[arg-type]  # no pair


def _base_chat(form: PromptForm, chat: list[Turn], tokenizer: Tokenizer) -> str:
    if base_template(tokenizer) is None:
        raise UsageProblem("this base has no chat template", hint="omit `--chat` and the system text")
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=form.generation_prompt))
    except TemplateError as error:  # templates refuse unknown roles
        raise UsageProblem(
            f"the chat template of this base refuses the prompt: {shown(str(error), 200)}",
            hint="pass `--raw` or `--template` to use another prompt form",
        ) from None


LIMIT_CPU_SECONDS: Final = 1.0
"""For all conversations of a call together, after Jinja is imported."""
LIMIT_WALL_SECONDS: Final = 60.0
"""A last resort: a template cannot wait, so its CPU time ends first unless the machine is overloaded."""
LIMIT_MEMORY_BYTES: Final = 192 << 20
LIMIT_OUTPUT_BYTES: Final = 256 << 10
"""Of one prompt."""
LIMIT_TOTAL_BYTES: Final = 16 << 20
_CHILD: Final = Path(__file__).with_name("_sandbox.py")


def render_chats(
    template: str,
    chats: Sequence[Sequence[Turn]],
    *,
    generation_prompt: bool = True,
    variables: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the prompt of each conversation; `variables` are the tokenizer's special tokens, such as `bos_token`.

    It gives what transformers' `apply_chat_template` gives, except that `strftime_now` is undefined: a prompt that
    holds today's date is not the same tomorrow. One child renders all; it costs about 0.15 CPU seconds to start.

    Raises:
        ChatTemplateRefused: the template is no Jinja, does what the sandbox forbids, or passes a limit.
        UsageProblem: the template itself refuses a conversation, by `raise_exception`.
        MissingExtra: Jinja is not installed.
    """
    if find_spec("jinja2") is None:
        raise MissingExtra("a chat template", ["jinja2"], "weights")
    task = {
        "template": template,
        "chats": [list(chat) for chat in chats],
        "generation_prompt": generation_prompt,
        "variables": dict(variables or {}),
        "cpu_seconds": LIMIT_CPU_SECONDS,
        "memory_bytes": LIMIT_MEMORY_BYTES,
        "output_bytes": LIMIT_OUTPUT_BYTES,
        "total_bytes": LIMIT_TOTAL_BYTES,
    }
    answer = _child(json.dumps(task).encode())
    problem = answer.get("problem")
    if problem is None:
        return [str(text) for text in answer["texts"]]
    text = shown(str(answer.get("text", "")), 200)
    if problem == "refuses":
        raise UsageProblem(
            f"the adapter's chat template refuses the prompt: {text}",
            hint="pass `--raw`, `--template` or `--chat` to use another prompt form",
        )
    raise ChatTemplateRefused(f"the adapter's chat template cannot be used: {text}", reason=problem)


def _child(task: bytes) -> dict[str, Any]:
    """Return the child's answer. Its output goes through a file, whose size the child's own limit bounds.

    Raises:
        ChatTemplateRefused: it ended without an answer.
    """
    import subprocess
    import tempfile  # nothing else here needs them, and commands that start fast read manifests

    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(  # noqa: S603 - our own file; the template goes through stdin
                [sys.executable, "-I", str(_CHILD)],
                input=task,
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=LIMIT_WALL_SECONDS,
                check=False,
                env={},
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = 1
        out.seek(0)
        raw = out.read(LIMIT_TOTAL_BYTES + 1)
    if code == 0 and len(raw) <= LIMIT_TOTAL_BYTES:
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and ("problem" in answer or isinstance(answer.get("texts"), list)):
            return answer
    raise ChatTemplateRefused(
        f"the adapter's chat template cannot be used: it takes more than {LIMIT_CPU_SECONDS:g} s or"
        f" {LIMIT_MEMORY_BYTES >> 20} MiB to render",
        reason="limits",
    )

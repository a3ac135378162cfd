"""Write the generated parts of the reference: commands, their documents, merge methods, exit codes, findings.

    python docs/generate.py            write them
    python docs/generate.py --check    exit code 1, with a line for each page that is stale

A generated part stands between two comments of its page; the text around it is written by hand. Commands are read off
the command tree, merge methods off their files, engines off their rules, errors off
`errors.py`, and codes off the source: each must have its sentence here, and no other may.
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import file_schemas
import json_schemas
import registry_api

from adapterhub import cli
from adapterhub.cli import documents
from adapterhub.core import errors
from adapterhub.formats import engines
from adapterhub.formats.engines._tables import releases as engine_releases
from adapterhub.trust.explaining import Explanation, error_classes, explanations, first_line
from adapterhub.trust.findings import Finding
from adapterhub.weights import catalogue as merge_methods

DOCS: Final = Path(__file__).resolve().parent
PACKAGE: Final = DOCS.parent / "adapterhub"
SENTENCES: Final = "trust/meanings.toml"

_CODE: Final = re.compile(r"[AEWUNS]_[A-Z][A-Z_]*")
_QUOTED_CODE: Final = re.compile(rf"['\"]{_CODE.pattern}['\"]")


class Stale(Exception):
    """The sentences in this file and the source disagree; the text lists how."""


# ---------------------------------------------------------------- findings
def codes_in_source(package: Path = PACKAGE) -> set[str]:
    """Every finding code in the source."""
    sources = (path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py")))
    nodes = (node for source in sources if _QUOTED_CODE.search(source) for node in ast.walk(ast.parse(source)))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if _CODE.fullmatch(text)}


def problems_with_codes(codes: Iterable[str]) -> list[str]:
    """Codes without a sentence, sentences without a code, and severities that differ."""
    told = {code: one.kind for code, one in explanations().items() if one.kind != "exit"}
    problems = [f"{code}: no sentence in {SENTENCES}" for code in sorted(set(codes) - told.keys())]
    problems += [f"{code}: nothing in the source says it" for code in sorted(told.keys() - set(codes))]
    problems += [
        f"{code}: a finding has severity {severity}, {SENTENCES} says {kind}"
        for code, kind in sorted(told.items())
        if (severity := Finding(code, "", "").severity) != kind
    ]
    return problems


def findings_table() -> str:
    """All codes with severity and meaning.

    Raises:
        Stale: the source has other codes.
    """
    problems = problems_with_codes(codes_in_source())
    if problems:
        raise Stale("\n".join(problems))
    parts = []
    for severity in ("error", "unknown", "warning", "note"):
        rows = sorted((code, one) for code, one in explanations().items() if one.kind == severity)
        head = ["| code | meaning | what to do |", "| --- | --- | --- |"]
        parts.append("\n".join([f"### {severity.capitalize()}s", "", *head, *(_row(code, one) for code, one in rows)]))
    return "\n\n".join(parts)


def _row(code: str, one: Explanation) -> str:
    text = f"`audit`: {one.text[0].lower()}{one.text[1:]}" if one.audit else one.text
    return f"| `{code}` | {text} | {one.remedy or '-'} |"


# ---------------------------------------------------------------- errors
def exits_table() -> str:
    """Every exit code with its meaning.

    Raises:
        Stale: an exit code of the source without a sentence, or the other way round.
    """
    constants = [value for module in (errors, cli) for name, value in vars(module).items() if name.startswith("EXIT_")]
    rows = {int(code): one for code, one in explanations().items() if one.kind == "exit"}
    used = {0, *constants, *(one.exit_code for one in error_classes())}
    if used != rows.keys():
        raise Stale(f"exit codes of the source: {sorted(used)}; of {SENTENCES}: {sorted(rows)}")
    lines = [f"| {code} | {one.text} | {one.remedy or '-'} |" for code, one in sorted(rows.items())]
    return "\n".join(["| code | meaning | what to do |", "| --- | --- | --- |", *lines])


def errors_table() -> str:
    """Return the error classes, those below another behind it."""
    lines = []
    for error in error_classes():
        depth = len(error.__mro__) - len(errors.AdapterHubError.__mro__) - 1
        lines.append(f"| {'· ' * depth}`{error.__name__}` | {error.exit_code} | {first_line(error)} |")
    return "\n".join(["| class | exit code | meaning |", "| --- | --- | --- |", *lines])


# ---------------------------------------------------------------- commands
OFTEN: Final = 3
"""An option with one text in so many commands is described once."""


def commands_text() -> str:
    """Return every command with usage, options and examples; options that many share are described once."""
    every = [one for name in (*cli.COMMANDS, *cli.BELOW_HELP) for one in _Section.of(cli.cli, (name,)).all()]
    commands = [one for one in every if not one.inner]
    often = Counter(row for one in commands for row in one.options)
    everywhere = [row for row, count in often.items() if count > len(commands) / 2]
    places = {row: {one.path[0] for one in commands if row in one.options} for row, n in often.items() if n >= OFTEN}
    below = {row: next(iter(groups)) for row, groups in places.items() if len(groups) == 1}
    parts = [
        "Every command takes these; `adapt registry` lists its own:",
        "\n".join(everywhere),
        "Many commands share these, and only name them in their own section:",
        "\n".join(row for row in places if row not in below and row not in everywhere),
    ]
    for one in every:
        named = {row for row in places if below.get(row, one.path[0]) == one.path[0] and row not in everywhere}
        parts += one.text(named, everywhere)
        if (own := [row for row, group in below.items() if (group,) == one.path]) and one.inner:
            parts.append("\n".join(["Its commands share:", "", *(_of_some(row, own, one.inner) for row in own)]))
    return "\n\n".join(parts)


def _of_some(row: str, rows: Sequence[str], sections: Sequence[_Section]) -> str:
    """Return the row, with the names of its commands if others have another text for the option."""
    name = row.partition("`: ")[0]
    if sum(other.startswith(f"{name}`") for other in rows) == 1:
        return row
    names = [" ".join(one.path[1:]) for section in sections for one in section.all() if row in one.options]
    return f"{row} In {', '.join(f'`{name}`' for name in names)}."


@dataclass(frozen=True)
class _Section:
    """A command, and those below it."""

    path: tuple[str, ...]
    command: click.Command
    options: tuple[str, ...]
    inner: tuple[_Section, ...]

    @classmethod
    def of(cls, group: click.Group, path: tuple[str, ...]) -> _Section:
        """Read a command off its group."""
        command = group.get_command(click.Context(group), path[-1])
        assert command is not None  # it was listed
        inner: tuple[_Section, ...] = ()
        if " ".join(path) in cli.ALIASES:
            return cls(path, command, (), ())
        if isinstance(command, click.Group):
            inner = tuple(cls.of(command, (*path, name)) for name in command.list_commands(click.Context(command)))
        options = () if inner else tuple(_option(p) for p in command.params if isinstance(p, click.Option))
        return cls(path, command, options, inner)

    def all(self) -> Iterator[_Section]:
        """Yield this section and those below it."""
        yield self
        for one in self.inner:
            yield from one.all()

    def text(self, named: Collection[str], left_out: Collection[str]) -> Iterator[str]:
        """Yield the parts of the section; options that are described elsewhere are only `named`, or `left_out`."""
        word = " ".join(["adapt", *self.path])
        title = {"explain": "adapt help", "completion": "adapt help completion"}.get(self.path[-1], word)
        yield f"{'#' * (len(self.path) + 1)} `{title}`"
        if first := cli.ALIASES.get(" ".join(self.path)):
            yield f"Alias of [`adapt {first}`](#adapt-{first})."
            return
        summary, examples = _help(self.command)
        yield summary
        if self.inner:
            return
        if arguments := [_argument(p) for p in self.command.params if isinstance(p, click.Argument)]:
            yield f"`{' '.join([title, *arguments])}`"
        own = [row for row in self.options if row not in named and row not in left_out]
        if also := [row.partition("`: ")[0].split()[1].strip("`,") for row in self.options if row in named]:
            own.append(f"- also {', '.join(f'`{name}`' for name in also)}")
        if own:
            yield "\n".join(own)
        if examples:
            yield "\n".join(["```sh", *examples[:SHOWN], "```"])


SHOWN: Final = 1
"""Examples of each command; its help has the others."""


def _help(command: click.Command) -> tuple[str, list[str]]:
    """Return the first paragraph of a command's help, and the lines of its examples."""
    first, *others = inspect.cleandoc(command.help or "").split("\n\n")
    found = [line.strip() for text in others if text.startswith("\b") for line in text.splitlines()[2:]]
    return " ".join(first.split()), found


def _argument(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    word = _choices(argument) or (argument.name or "").upper()
    word = word if argument.required else f"[{word}]"
    return f"{word}..." if argument.nargs == -1 else word


def _option(option: click.Option) -> str:
    """Return the line of an option."""
    value = option.metavar or _choices(option) or option.type.name.upper()
    value = "" if option.is_flag else value if value.startswith("[=") else f" {value}"
    names = ", ".join(sorted(option.opts, key=len))
    text = option.help or ""
    if option.show_default:
        text = f"{text} [default: {option.default}]".strip()
    return f"- `{names}{value}`: {text}"


def _choices(parameter: click.Parameter) -> str:
    return f"[{'|'.join(map(str, parameter.type.choices))}]" if isinstance(parameter.type, click.Choice) else ""


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


# ---------------------------------------------------------------- merge methods
def methods_text() -> str:
    """Every merge method, described by the docstring of its file."""
    return "\n\n".join(_method(merge_methods.describe(name)) for name in merge_methods.names())


def _method(method: merge_methods.Method) -> str:
    sentence, _, rest = method.text.partition("\n\n")
    sentence = sentence.removeprefix(f"`{method.name}`: ")
    parts = [f"### {method.name}", sentence[0].upper() + sentence[1:], rest.strip()]
    if method.options:
        options = ", ".join(f"`{o.name}={o.values}` [default: {o.default}]" for o in method.options)
        parts.append(f"Options: {options}.")
    return "\n\n".join(parts)


# ---------------------------------------------------------------- engines
_MARKS: Final[Mapping[str, str]] = {"refuses": "refuses", "misreads": "**misreads**", "notes": "note"}


def engines_text() -> str:
    """One table of engines and features, then the rules of each engine."""
    found = engines.described()
    rows = []
    for key, feature in engines.FEATURES.items():
        of = {name: [rule for rule in found[name]["rules"] if rule.feature == key] for name in found}
        if not any(of.values()):
            continue
        cells = [" or ".join(dict.fromkeys(_MARKS[rule.effect] for rule in rules)) for rules in of.values()]
        rows.append(f"| {_cell(feature.title)} | {' | '.join(cells)} |")
    head = [f"| | {' | '.join(f'`{name}`' for name in found)} |", f"| --- {'| --- ' * len(found)}|"]
    return "\n\n".join(["\n".join([*head, *rows]), *(_engine(name, said) for name, said in found.items())])


def engine_tables_text() -> str:
    """Return the versions of each engine that were read and run."""
    ran = json.loads((DOCS / "engine_tables" / "ran.json").read_text("utf-8"))
    read = []
    for name in ("llama.cpp", "sglang", "vllm"):
        releases = engine_releases(name.replace(".", "_"))
        newest = next(iter(releases.values()))
        run = ran["versions"].get(name, "none")
        package = "llama-cpp-python " if name == "llama.cpp" else ""
        read.append(f"| `{name}` | {package}{', '.join(releases)} | {run} | {len(newest.classes)} |")
    head = ["| engine | versions read | version run | classes of models |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *read])


def _engine(name: str, said: Mapping[str, Any]) -> str:
    parts = [f"### {name}", said["title"], f"Source: {said['source']}."]
    if name == "ollama":
        return "\n\n".join([*parts, "The rules are those of `llama.cpp`."])
    rows: dict[tuple[str, str], list[str]] = {}
    for rule in said["rules"]:
        if rule.effect != "refuses":
            rows.setdefault((rule.effect, rule.says), []).append(engines.FEATURES[rule.feature].title)
    parts += ["\n".join(f"- {effect}: {says}. Of {'; '.join(titles)}." for (effect, says), titles in rows.items())]
    return "\n\n".join(parts)


# ---------------------------------------------------------------- documents
def documents_text() -> str:
    """Every document of `--json` with its fields."""
    return json_schemas.page_of(documents.CHAPTERS)


def schemas_text() -> str:
    """Return the JSON Schemas of all documents."""
    return json.dumps(json_schemas.schemas_of(documents.CHAPTERS), indent=1, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------- pages
PARTS: Final = {
    "commands": commands_text,
    "merge methods": methods_text,
    "engines": engines_text,
    "engine tables": engine_tables_text,
    "exit codes": exits_table,
    "errors": errors_table,
    "findings": findings_table,
    "documents": documents_text,
    "registry routes": registry_api.routes_text,
}
PAGES: Final = tuple(
    f"reference/{name}.md"
    for name in ("cli", "merge-methods", "engines", "exit-codes", "findings", "json", "registry-api")
)
SCHEMAS: Final = {
    "reference/schemas/documents.json": schemas_text,
    **{f"reference/schemas/{name}.json": functools.partial(file_schemas.text_of, name) for name in file_schemas.FILES},
}
_PART: Final = re.compile(r"(<!-- generated by docs/generate\.py: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(page: str) -> str:
    """Return the page with its generated parts replaced."""
    return _PART.sub(lambda m: f"{m[1]}\n{PARTS[m[2]]()}\n\n{m[3]}", page)


def main(words: list[str] | None = None) -> int:
    """Write the pages, or check them; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a page is stale")
    check = parser.parse_args(words).check
    stale = 0
    for name in (*PAGES, *SCHEMAS):
        path = DOCS / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        try:
            new = SCHEMAS[name]() if name in SCHEMAS else generated(old)
        except Stale as problem:
            sys.stderr.write(f"{problem}\n")
            return 1
        if new != old and not check:
            path.write_text(new, encoding="utf-8")
        if new != old and check:
            sys.stderr.write(f"docs/{name} is stale; `python docs/generate.py` writes it\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())

"""Write the generated parts of the reference: commands, their documents, merge methods, key maps, exit codes, findings.

    python docs/generate.py            write them
    python docs/generate.py --check    exit code 1, with a line for each page that is stale

A generated part stands between two comments of its page; the text around it is written by hand. Commands are read off
the command tree, merge methods off their files, engines off their rules, key maps off their table, errors off
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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import file_schemas
import json_schemas
import registry_api

from adapterhub import cli
from adapterhub.cli import documents
from adapterhub.cli.functions import FUNCTIONS
from adapterhub.core import errors
from adapterhub.formats import engines, modules
from adapterhub.trust.explaining import Explanation, error_classes, explanations, first_line
from adapterhub.weights import catalogue as merge_methods
from tests.measure_house import Command

DOCS: Final = Path(__file__).resolve().parent
PACKAGE: Final = DOCS.parent / "adapterhub"
SENTENCES: Final = "trust/meanings.toml"
COMMON_OPTIONS: Final = ("root", "as_json", "quiet", "verbose")

_CODE: Final = re.compile(r"[AEWUNS]_[A-Z][A-Z_]*")
_QUOTED_CODE: Final = re.compile(rf"['\"]{_CODE.pattern}['\"]")


class Stale(Exception):
    """The sentences in this file and the source disagree; the text lists how."""


# ---------------------------------------------------------------- findings
def codes_in_source(package: Path = PACKAGE) -> tuple[set[str], set[tuple[str, str]]]:
    """Every finding code in the source, and the `(code, severity)` that findings are made with in plain sight."""
    codes: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for path in sorted(package.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not _QUOTED_CODE.search(source) and "Finding(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _CODE.fullmatch(node.value):
                codes.add(node.value)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding":
                said = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                if isinstance(said.get("code"), str) and isinstance(said.get("severity"), str):
                    pairs.add((str(said["code"]), str(said["severity"])))
    return codes, pairs


def problems_with_codes(codes: Iterable[str], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Codes without a sentence, sentences without a code, and severities that differ."""
    told = {code: one.kind for code, one in explanations().items() if one.kind != "exit"}
    problems = [f"{code}: no sentence in {SENTENCES}" for code in sorted(set(codes) - told.keys())]
    problems += [f"{code}: nothing in the source says it" for code in sorted(told.keys() - set(codes))]
    problems += [
        f"{code}: the source makes it of severity {severity}, {SENTENCES} says {told[code]}"
        for code, severity in sorted(pairs)
        if told.get(code, severity) != severity
    ]
    return problems


def findings_table() -> str:
    """All codes with severity and meaning.

    Raises:
        Stale: the source has other codes.
    """
    problems = problems_with_codes(*codes_in_source())
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
    """The error classes, those below another behind it."""
    lines = []
    for error in error_classes():
        depth = len(error.__mro__) - len(errors.AdapterHubError.__mro__) - 1
        lines.append(f"| {'· ' * depth}`{error.__name__}` | {error.exit_code} | {first_line(error)} |")
    return "\n".join(["| class | exit code | meaning |", "| --- | --- | --- |", *lines])


# ---------------------------------------------------------------- commands
def commands_text() -> str:
    """Every command with usage, options and examples."""
    common: dict[str, str] = {}
    parts = [part for name in (*cli.COMMANDS, *cli.BELOW_HELP) for part in _command(cli.cli, (name,), common)]
    head = [
        "Every command takes these, too (`adapt registry` lists its own):",
        "",
        "| option | meaning |",
        "| --- | --- |",
        *common.values(),
    ]
    return "\n\n".join(["\n".join(head), *parts])


def _command(group: click.Group, path: tuple[str, ...], common: dict[str, str]) -> Iterator[str]:
    """The section of one command and those of the commands below it; rows of common options go to `common`."""
    command = group.get_command(click.Context(group), path[-1])
    assert command is not None  # it was listed
    title = {"explain": "adapt help", "completion": "adapt help completion"}.get(path[-1], " ".join(["adapt", *path]))
    yield f"{'#' * (len(path) + 1)} `{title}`"
    if first := cli.ALIASES.get(" ".join(path)):
        yield f"Alias of [`adapt {first}`](#adapt-{first})."
        return
    text, examples = _help(command)
    yield from text
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from _command(command, (*path, name), common)
        return
    arguments = [_argument(p) for p in command.params if isinstance(p, click.Argument)]
    yield f"```text\n{' '.join([title, '[OPTIONS]', *arguments])}\n```"
    rows = {p.name: _option(p) for p in command.params if isinstance(p, click.Option)}
    for name in COMMON_OPTIONS:
        if name in rows and common.setdefault(name, rows[name]) == rows[name]:
            del rows[name]
    if rows:
        yield "\n".join(["| option | meaning |", "| --- | --- |", *rows.values()])
    if examples:
        yield "\n".join(["```sh", *examples, "```"])
    methods = Command(" ".join(path), command).methods
    if names := [f"Library.{name}" for name in methods] or FUNCTIONS.get(" ".join(path)):
        yield f"From [Python](python.md): {', '.join(f'`{name}`' for name in names)}."


def _help(command: click.Command) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's help, and the lines of its examples."""
    text: list[str] = []
    examples: list[str] = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            examples += [line.strip() for line in paragraph.splitlines()[2:]]
        else:
            text.append(" ".join(paragraph.split()))
    return text, examples


def _argument(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    word = _choices(argument) or (argument.name or "").upper()
    word = word if argument.required else f"[{word}]"
    return f"{word}..." if argument.nargs == -1 else word


def _option(option: click.Option) -> str:
    """The row of an option."""
    value = option.metavar or _choices(option) or option.type.name.upper()
    value = "" if option.is_flag else value if value.startswith("[=") else f" {value}"
    names = ", ".join(sorted(option.opts, key=len))
    text = option.help or ""
    if option.show_default:
        text = f"{text} [default: {option.default}]".strip()
    return f"| `{_cell(names + value)}` | {_cell(text)} |"


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
        rows = [f"| `{_cell(f'{o.name}={o.values}')}` | {_cell(str(o.default))} |" for o in method.options]
        parts.append("\n".join(["| option | default |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)


# ---------------------------------------------------------------- engines
_MARKS: Final[Mapping[str, str]] = {"refuses": "refuses", "misreads": "**misreads**", "notes": "reads, see below"}


def engines_text() -> str:
    """One table of engines and features, then the rules of each engine with their places in its source."""
    found = engines.described()
    rows = []
    for key, feature in engines.FEATURES.items():
        of = {name: [rule for rule in found[name]["rules"] if rule.feature == key] for name in found}
        if not any(of.values()):
            continue
        cells = [" or ".join(dict.fromkeys(_MARKS[rule.effect] for rule in rules)) or "reads" for rules in of.values()]
        rows.append(f"| {_cell(feature.title)} | {' | '.join(cells)} |")
    head = [f"| | {' | '.join(f'`{name}`' for name in found)} |", f"| --- {'| --- ' * len(found)}|"]
    return "\n\n".join(["\n".join([*head, *rows]), *(_engine(name, said) for name, said in found.items())])


def _engine(name: str, said: Mapping[str, Any]) -> str:
    parts = [f"### {name}", said["title"], f"Source: {said['source']}."]
    if name == "ollama":
        return "\n\n".join([*parts, "The rules are those of `llama.cpp`."])
    rows = [
        f"| {_cell(title)} | {rule.effect} | {_cell(rule.says)} | {_place(rule.source)} |"
        for rule in said["rules"]
        for title in (engines.FEATURES[rule.feature].title,)
    ]
    table = ["| feature | effect | what it does | where |", "| --- | --- | --- | --- |", *rows]
    return "\n\n".join([*parts, "\n".join(table)])


def _place(source: str) -> str:
    return _cell(source) if " " in source or not source else f"`{_cell(source)}`"


# ---------------------------------------------------------------- key maps
def key_maps_text() -> str:
    """Every key map with its model types, and each name in both releases of transformers."""
    return "\n\n".join(_key_map(key_map) for key_map in modules.KEY_MAPS)


def _key_map(key_map: modules.KeyMap) -> str:
    types = ", ".join(f"`{kind}`" for kind in key_map.model_types)
    rows = [f"| `{old}` | `{new}` |" for block in key_map.blocks for old, new in _names(block)]
    table = ["| transformers 4 | transformers 5 |", "| --- | --- |", *rows]
    return "\n\n".join([f"### {key_map.name}", f"Model types: {types}", "\n".join(table)])


def _names(block: modules.Block) -> Iterator[tuple[str, str]]:
    """What changed in a block: its place, if that did, and what is inside."""
    if block.old != block.new:
        yield block.old, block.new
    for old, new in block.inside.items():
        yield f"{block.old}.{old}", f"{block.new}.{new}"


# ---------------------------------------------------------------- documents
def documents_text() -> str:
    """Every document of `--json` with its fields."""
    return json_schemas.page_of(documents.CHAPTERS)


def schemas_text() -> str:
    """The JSON Schemas of all documents."""
    return json.dumps(json_schemas.schemas_of(documents.CHAPTERS), indent=1, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------- pages
PARTS: Final = {
    "commands": commands_text,
    "merge methods": methods_text,
    "engines": engines_text,
    "key maps": key_maps_text,
    "exit codes": exits_table,
    "errors": errors_table,
    "findings": findings_table,
    "documents": documents_text,
    "registry routes": registry_api.routes_text,
}
PAGES: Final = tuple(
    f"reference/{name}.md"
    for name in ("cli", "merge-methods", "engines", "key-maps", "exit-codes", "findings", "json", "registry-api")
)
SCHEMAS: Final = {
    "reference/schemas/documents.json": schemas_text,
    **{f"reference/schemas/{name}.json": functools.partial(file_schemas.text_of, name) for name in file_schemas.FILES},
}
_PART: Final = re.compile(r"(<!-- generated by docs/generate\.py: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(page: str) -> str:
    """The page with its generated parts replaced."""
    return _PART.sub(lambda m: f"{m[1]}\n{PARTS[m[2]]()}\n\n{m[3]}", page)


def main() -> int:
    """Write the pages, or check them; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a page is stale")
    check = parser.parse_args().check
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

"""How large and how plain the program is, counted in the tree, in the commands and in one run of `install`.

    python -m tests.measure_house

Prints one table, the same for the same tree. Nothing in it is typed in. How long the tests take is for `nox -s all` to say.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import click

import adapterhub
from adapterhub.cli import cli
from tests.support.command_line import Adapt
from tests.support.docs_sandbox import make_sandbox

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "adapterhub").rglob("*.py"), *(ROOT / "registry" / "adapterhub_registry").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
ABOUT_THE_LINE = {"demo", "serve", "mcp", "completion"}
"""Commands without a method: they are about the command line or another program. `registry` runs a server."""
OBJECTS = {"bases", "aliases", "keys", "remotes", "contracts"}
"""What a library has methods in, besides its own."""
EVERYWHERE = {"root", "as_json", "quiet", "verbose", "help"}
"""Options that every command has."""
WORKS = tuple(
    f"adapterhub.{wing}" for wing in ("api.steps", "library", "distribution", "weights", "projects", "inference")
)
"""Where the work is done; a command leaves it to a method."""
LEAST_FIELDS = 2
"""Classes of one equal field are not counted: many have just a `name`."""


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def lines_of(paths: Iterable[Path]) -> int:
    """All lines of the files."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def code_lines(path: Path) -> int:
    """The lines of a file without blank ones, comments, docstrings and imports."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    text = path.read_text(encoding="utf-8")
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in nothing
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(tree(path)):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


# ---------------------------------------------------------------- classes
def name_of(node: ast.expr) -> str:
    """The last word of a name: `b` of `a.b`, `a.b[c]` and `a.b(c)`."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    """Every class of the sources, each with its file."""
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                yield path, node


def typed_dicts() -> int:
    """The classes below `TypedDict`; `document_of(…)` makes one of a dataclass."""
    found = {"TypedDict", "document_of"}
    every = [node for _, node in classes()]
    while more := {node.name for node in every if {name_of(b) for b in node.bases} & found} - found:
        found |= more
    return sum(bool({name_of(base) for base in node.bases} & found) for node in every)


def fields_of(node: ast.ClassDef) -> frozenset[str]:
    """The names that the body of a class annotates."""
    return frozenset(
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    )


def equal_groups() -> int:
    """The groups of classes with the same fields."""
    count = Counter(fields for _, node in classes() if len(fields := fields_of(node)) >= LEAST_FIELDS)
    return sum(number > 1 for number in count.values())


def names_twice() -> int:
    """The names that two classes or more have."""
    return sum(number > 1 for number in Counter(node.name for _, node in classes()).values())


# ---------------------------------------------------------------- modules
def module_of(path: Path) -> str:
    """The dotted name of a file; a package stands for its `__init__`."""
    base = ROOT / "registry" if ROOT / "registry" in path.parents else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imports(path: Path) -> set[Path]:
    """The files that a file imports, also inside of functions and for types."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {MODULES.get(f"{node.module}.{name.name}", MODULES.get(node.module)) for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {MODULES.get(name.name) for name in node.names}
    return {one for one in found if one is not None and one != path}


def circles() -> int:
    """The groups of files that import each other, when they run or for types (Tarjan, 1972)."""
    graph = {path: imports(path) for path in SOURCES if path != ROOT / "adapterhub" / "__init__.py"}
    number: dict[Path, int] = {}
    low: dict[Path, int] = {}
    stack: list[Path] = []
    found = 0

    def visit(path: Path) -> None:
        nonlocal found
        number[path] = low[path] = len(number)
        stack.append(path)
        for other in graph[path] & graph.keys():
            if other not in number:
                visit(other)
            if other in stack:
                low[path] = min(low[path], low[other])
        if low[path] == number[path]:
            at = stack.index(path)
            found += len(stack) - at > 1
            del stack[at:]

    sys.setrecursionlimit(10_000)
    for path in graph:
        if path not in number:
            visit(path)
    return found


# ---------------------------------------------------------------- commands
@dataclass(frozen=True)
class Command:
    """One command: the words that are typed, and what click has of it."""

    words: str
    command: click.Command

    @property
    def slots(self) -> int:
        """The number of its options, without those that every command has."""
        return sum(isinstance(p, click.Option) and p.name not in EVERYWHERE for p in self.command.params)

    @property
    def is_a_verb(self) -> bool:
        """Whether one method is to do its work."""
        return self.words.partition(" ")[0] not in ABOUT_THE_LINE | {"registry"}

    @functools.cached_property
    def methods(self) -> list[str]:
        """The public methods that it calls; none if it works with functions below `api` itself."""
        function = inspect.unwrap(self.command.callback) if self.command.callback else None
        code = reached(f"{function.__module__}:{function.__qualname__}") if function else {}
        called = {name for node in code.values() for name in methods_called(node)}
        taken = {one for place, node in code.items() for one in taken_by(node, imported_in(place.partition(":")[0]))}
        below = {one for one in taken if one.startswith(WORKS)}
        return [] if below or any("(" in name for name in called) else sorted(called)


def commands(group: click.Group | None = None, before: str = "") -> Iterator[Command]:
    """Every command that does something, second names included."""
    group = group or cli
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        else:
            yield Command(f"{before}{name}", command)


@functools.cache
def functions_in(module: str) -> Mapping[str, ast.FunctionDef]:
    """The functions of a module by their names."""
    return {node.name: node for node in tree(MODULES[module]).body if isinstance(node, ast.FunctionDef)}


@functools.cache
def imported_in(module: str) -> Mapping[str, str]:
    """The imported names of a module, inside of functions, too, each with its `module:name`; none that is for types."""
    blocks = [
        one
        for one in tree(MODULES[module]).body
        if not (isinstance(one, ast.If) and name_of(one.test) == "TYPE_CHECKING")
    ]
    return {
        name.asname or name.name: f"{node.module}:{name.name}"
        for block in blocks
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }


def body_of(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Every part of what a function does; its decorators and types are none."""
    for statement in function.body:
        yield from ast.walk(statement)


def reached(place: str) -> dict[str, ast.FunctionDef]:
    """The function `module:name`, those of `adapterhub.cli` that it names, and so on."""
    seen: dict[str, ast.FunctionDef] = {}
    todo = [place]
    while todo:
        here = todo.pop()
        module, _, name = here.partition(":")
        node = functions_in(module).get(name) if module in MODULES else None
        if node is not None and here not in seen:
            seen[here] = node
            names = [one.id for one in body_of(node) if isinstance(one, ast.Name)]
            targets = [imported_in(module).get(name, f"{module}:{name}") for name in names]
            todo += [target for target in targets if target.startswith("adapterhub.cli")]
    return seen


def taken_by(function: ast.FunctionDef, imported: Mapping[str, str]) -> set[str]:
    """The modules of the imported names that a function works with."""
    return {
        imported[one.id].partition(":")[0]
        for one in body_of(function)
        if isinstance(one, ast.Name) and one.id in imported
    }


def methods_called(function: ast.FunctionDef) -> set[str]:
    """What a function calls on the library or the project of its session, such as `push` and `keys.new`."""
    found = set()
    for one in body_of(function):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute):
            name = ast.unparse(one.func)
            words = name.removeprefix("session.").split(".")
            is_one = words[0] in {"opened", "opened_project", "library", "project", "Project"} or name.startswith(
                ("session.index.", "session.checks.")
            )
            found |= {".".join(words[1:])} if is_one else set()
    return {name for name in found if name in public_methods() or name.partition(".")[0] in OBJECTS}


# ---------------------------------------------------------------- methods and their tests
@functools.cache
def public_methods() -> set[str]:
    """The public methods of `Library` and `Project` that `adapterhub.api` defines."""
    return {
        name
        for owner in (adapterhub.Library, adapterhub.Project)
        for kind in owner.__mro__
        if kind.__module__.startswith("adapterhub.api")
        for name, member in vars(kind).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, classmethod))
    }


def asserted_methods(verbs: Mapping[str, Sequence[str]]) -> set[str]:
    """The public methods that a test with an assertion calls, by name or by the command that `verbs` has for them."""
    found: set[str] = set()
    for path in TESTS:
        source = path.read_text(encoding="utf-8")
        is_python = any(
            name in source for name in ("adapterhub.Library", "adapterhub.Project", "ah.", "adapterhub.api")
        )
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and _asserts(node):
                called = [one for one in ast.walk(node) if isinstance(one, ast.Call)]
                if is_python:
                    found |= {one.func.attr for one in called if isinstance(one.func, ast.Attribute)}
                found |= {name for one in called for words in _typed(one) for name in verbs.get(words, ())}
    return found


def _typed(call: ast.Call) -> list[str]:
    """The first words of a call such as `adapt("key", "new", …)`: two of them, then one."""
    texts = [one.value for one in call.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return [" ".join(texts[:count]) for count in range(len(texts), 0, -1)]


def _asserts(node: ast.FunctionDef) -> bool:
    """Whether a test compares something, or expects a refusal."""
    return any(
        isinstance(one, ast.Assert) or (isinstance(one, ast.Call) and name_of(one.func) in {"raises", "fails"})
        for one in ast.walk(node)
    )


# ---------------------------------------------------------------- one run
@dataclass
class Entered:
    """The functions of the package that a run enters, and how deep they lie in each other."""

    codes: set[CodeType] = field(default_factory=set)
    depth: int = 0
    now: int = 0

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        """Count one call or return; the body of a module or a class is no function."""
        code = frame.f_code
        if event in {"call", "return"} and code.co_flags & inspect.CO_NEWLOCALS and _is_ours(code.co_filename):
            self.now += 1 if event == "call" else -1
            self.depth = max(self.depth, self.now)
            self.codes.add(code)


@functools.cache
def _is_ours(filename: str) -> bool:
    return filename.startswith(str(ROOT / "adapterhub"))


def install_of_a_tiny_adapter() -> Entered:
    """What `adapt install` enters, from the first import."""
    entered = Entered()
    with tempfile.TemporaryDirectory() as folder:
        make_sandbox(Path(folder), filled=True)
        adapt = Adapt(Path(folder))
        adapt.ok("install", "--help")  # imports the command; what the run itself imports counts
        sys.setprofile(entered)
        try:
            done = adapt("install", "summarize@base-7b", "--from", "./published")
        finally:
            sys.setprofile(None)
        assert done.exit_code == 0, done.stderr
    return entered


# ---------------------------------------------------------------- the table
def table() -> list[tuple[str, str]]:
    """Each row: what was counted, and how many."""
    entered = install_of_a_tiny_adapter()
    every = list(commands())
    verbs = {one.words: one.methods for one in every if one.is_a_verb}
    public = public_methods()
    bare = public - asserted_methods(verbs)
    return [
        ("files", f"{len(SOURCES):,}"),
        ("lines", f"{lines_of(SOURCES):,}"),
        ("lines of code, without blank lines, comments, docstrings and imports", f"{sum(map(code_lines, SOURCES)):,}"),
        ("commands that call one public method", f"{sum(len(found) == 1 for found in verbs.values())} of {len(verbs)}"),
        ("public methods that no test asserts", f"{len(bare)} of {len(public)}"),
        ("TypedDicts", f"{typed_dicts()}"),
        ("groups of classes with equal fields", f"{equal_groups()}"),
        ("class names defined twice or more", f"{names_twice()}"),
        ("functions entered by `install` of a tiny adapter", f"{len(entered.codes)}"),
        ("their depth", f"{entered.depth}"),
        ("circles of files that import each other", f"{circles()}"),
        ("`noqa`", f"{sum(path.read_text(encoding='utf-8').count('# noqa') for path in SOURCES)}"),
        ("words after `adapt`", f"{len(cli.list_commands(click.Context(cli)))}"),
        ("commands", f"{len(every)}"),
        ("option slots", f"{sum(one.slots for one in every)}"),
        ("lines of tests", f"{lines_of(TESTS):,}"),
    ]


def main() -> None:
    """Measure and print."""
    print("| what | now |\n| --- | ---: |")
    for what, count in table():
        print(f"| {what} | {count} |")


if __name__ == "__main__":
    main()

"""Exit codes as `docs/reference/exit-codes.md` has them: every command keeps to the table, and its document says so."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from adapterhub.cli import cli
from adapterhub.core import errors
from tests.cli.test_cli import leaves
from tests.support.command_line import Adapt, Done
from tests.support.docs_sandbox import make_sandbox
from tests.support.standin_vllm import make_standin

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reference" / "exit-codes.md"
TABLE = {int(code) for code in re.findall(r"^\| (\d+) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)}
CLASSES = {
    name: int(code) for name, code in re.findall(r"^\| [· ]*`(\w+)` \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
}
NOBODY = "http://127.0.0.1:9"
"""Where no server listens."""


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """The library of the documentation, with a key, a trusted key, two remotes, and an adapter whose base is not known."""
    folder = tmp_path_factory.mktemp("codes")
    make_sandbox(folder, filled=True)
    make_standin(folder / "vllm")
    adapt = Adapt(folder)
    adapt.ok("add", "./out/summarize", "--name", "orphan", "--no-base")
    adapt.ok("key", "new", "ann", "--unencrypted")
    adapt.ok("remote", "add", "dead", NOBODY)
    adapt.ok("remote", "add", "other", "http://127.0.0.1:10")
    (folder / "stale").mkdir()
    (folder / "stale" / "adapters.toml").write_text('[adapters]\nlegal-qa = "*"\n')
    adapt.ok("lock", "--offline", "--project", "./stale")
    (folder / "stale" / "adapters.toml").write_text('[adapters]\nlegal-qa = ">=1"\n')
    (folder / "text.txt").write_text("no TOML [")
    for name, text in {"project": '[adapters]\nnowhere = "*"\n', "broken": "[adapters"}.items():
        (folder / name).mkdir()
        (folder / name / "adapters.toml").write_text(text)
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    return adapt


def is_class_of_ours(kind: object) -> bool:
    root = errors.AdapterHubError
    return isinstance(kind, type) and issubclass(kind, root) and kind is not root


def failure_of(done: Done) -> dict[str, object]:
    """The document of a refusal: alone on stderr behind the notes, and nothing on stdout."""
    assert done.stdout == ""
    return dict(json.loads(done.stderr.splitlines()[-1])["error"])


@pytest.mark.parametrize("words", leaves(cli), ids=" ".join)
def test_an_option_that_does_not_exist_is_a_usage_problem(adapt, words):
    done = adapt(*words, "--no-such-option", "--json")

    assert done.exit_code == 2
    assert failure_of(done)["type"] == "UsageProblem"


REFUSALS = [
    ("base add ./nowhere", 10),
    ("explain E_NOTHING", 10),
    ("base add ./out/legal-qa", 16),
    ("base add ./models/base-7b --hub-id /home/ann/base", 2),
    ("base set base-7b --hub-id a--b", 2),
    ("base set nothing --hub-id acme/base-7b", 10),
    ("base show nothing", 10),
    ("base show nothing --record", 10),
    ("base compare base-7b ./nowhere", 10),
    ("base remove nothing", 10),
    ("base family nothing", 10),
    ("base family kin base-7b base-7b", 2),
    ("base pin nothing base-7b", 10),
    ("base pin legal-qa other", 10),
    ("add ./nowhere --name x", 10),
    ("add ./downloads/pickled --name x", 16),
    ("add ./downloads/diverged --name x", 16),
    ("add ./downloads/made-for-other --name x --base base-7b", 11),
    ("add ./out/summarize --name legal-qa --base base-7b", 15),
    ("add ./out/summarize --name Not_a_name!", 2),
    ("install nothing --from ./team --offline", 10),
    ("install summarize@base-7b==9 --from ./team --offline", 11),
    ("install summarize@base-7b==1 --from ./team --offline --signatures require", 14),
    ("install acme/legal-qa@base-7b --remote dead", 13),
    ("install acme/legal-qa@base-7b --offline", 10),
    ("list --base nothing", 10),
    ("search --base nothing", 10),
    ("search --remote dead", 13),
    ("search --base base-7b --try nowhere.jsonl", 10),
    ("search --try text.txt", 2),
    ("route hello --file text.txt", 16),
    ("route hello", 2),
    ("export ./nowhere.json --format semantic-router -o x.yaml", 10),
    ("show nothing", 10),
    ("show nothing --offline", 13),
    ("show legal-qa#sha256:12345678", 11),
    ("info nothing --path", 10),
    ("verify", 2),
    ("verify nothing", 10),
    ("test", 2),
    ("test nothing", 10),
    ("contract results nothing", 10),
    ("test legal-qa --tests text.txt", 16),
    ("test legal-qa --key ann", 2),
    ("test legal-qa --sign --key nothing", 10),
    ("contract record legal-qa", 2),
    ("test legal-qa --task text.txt", 2),
    ("test legal-qa --runner pytest", 2),
    ("contract export legal-qa ./task", 17),
    ("audit nothing", 10),
    ("export nothing --format cyclonedx", 10),
    ("export legal-qa --format cyclonedx --library", 2),
    ("audit ./nowhere", 10),
    ("audit --ignore NOTHING", 2),
    ("merge nothing legal-qa -o x", 10),
    ("merge legal-qa orphan --weights 1 -o x", 2),
    ("merge --recipe text.txt", 16),
    ("merge --recipe nowhere.toml", 10),
    ("resize nothing --rank 2", 10),
    ("port nothing --to base-7b", 10),
    ("port legal-qa", 2),
    ("resize legal-qa", 2),
    ("extract ./nowhere --base base-7b --rank 2", 10),
    ("compare nothing legal-qa", 10),
    ("compare legal-qa --diff", 2),
    ("fuse nothing -o ./x", 10),
    ("fuse legal-qa -o ./full", 15),
    ("run nothing hello", 10),
    ("run legal-qa hello --base other", 10),
    ("push nothing --to ./published", 10),
    ("push legal-qa --to acme/legal-qa --remote dead", 13),
    ("push legal-qa --to ./published --key ann", 2),
    ("key sign nothing", 10),
    ("key sign legal-qa --key nobody", 10),
    ("key new ann --unencrypted", 15),
    ("key new bob", 2),
    ("key show nobody", 10),
    ("key trust nobody", 10),
    ("key trust bob ./text.txt", 16),
    ("key untrust nobody", 10),
    ("key revoke nobody", 10),
    ("key rotate nobody other --unencrypted", 10),
    ("key policy --namespace acme", 2),
    ("yank nothing", 2),
    ("yank nothing --undo", 2),
    ("delete nothing", 2),
    ("delete acme/nothing --remote dead --yes", 13),
    ("pull nothing ./x --offline", 10),
    ("pull legal-qa ./full", 15),
    ("info acme/legal-qa --remote dead", 13),
    ("mirror acme/legal-qa --from dead --to other", 13),
    ("mirror acme/legal-qa --from dead --to dead", 2),
    ("remote add 'not a name' http://127.0.0.1:9", 2),
    ("remote add new ftp://example.org", 2),
    ("key policy warn --remote nothing", 10),
    ("remote remove nothing", 10),
    ("remote login nothing --token x", 10),
    ("remote logout nothing", 10),
    ("remove nothing", 10),
    ("remove legal-qa", 2),
    ("doctor --dry-run", 2),
    ("contract policy --bound same=7", 2),
    ("contract policy require --max-age yesterday", 2),
    ("completion tcsh", 2),
    ("cache clean --grace -1", 2),
    ("cache show --limit -1", 2),
    ("init ./project", 15),
    ("init ./new --base '@@'", 2),
    ("lock", 10),
    ("lock --project ./nowhere", 10),
    ("lock --check --project ./project", 10),
    ("lock --check --project ./stale", 15),
    ("lock --project ./broken", 16),
    ("lock nothing --project ./project", 2),
    ("sync", 10),
    ("sync --frozen --project ./project", 10),
    ("sync --frozen --offline --project ./stale", 15),
    ("sync --group nothing --project ./project", 2),
    ("remote trust", 10),
    ("alias set prod nothing", 10),
    ("alias set base-7b legal-qa", 15),
    ("alias set main legal-qa", 2),
    ("alias set prod legal-qa summarize", 2),
    ("alias set prod legal-qa==1 --save", 10),
    ("alias set prod acme/legal-qa==1 --remote dead", 13),
    ("alias list NOTHING", 2),
    ("alias list legal-qa@prod", 10),
    ("alias remove legal-qa@prod", 10),
    ("alias history legal-qa@prod", 10),
    ("alias rollback legal-qa@prod", 10),
    ("alias keep acme/legal-qa@prod 20 --remote dead", 13),
    ("alias keep legal-qa@prod 0", 2),
    ("remote trust ./nowhere", 10),
    ("trust --list --revoke", 2),
    ("tree nothing", 10),
    ("tree --project ./project", 10),
    ("tree legal-qa --holders", 2),
    ("tree --invert nothing", 10),
    ("upgrade --check nothing", 10),
    ("upgrade --check --project ./project", 10),
    ("upgrade nothing", 10),
    ("mcp --nope", 2),
    ("upgrade --undo nothing", 10),
    ("upgrade --undo", 2),
    ("upgrade --undo nothing --check", 2),
    ("upgrade --project ./broken", 16),
    ("compare --diff nothing legal-qa", 10),
    ("compare --diff legal-qa ./nowhere", 10),
    ("identify ./nowhere", 10),
    ("compare nothing", 10),
    ("export --project ./project", 10),
    ("uninstall nothing", 10),
    ("uninstall legal-qa", 2),
    ("uninstall nothing --save --project ./project --yes", 10),
    ("export nothing --format peft -o ./new", 10),
    ("export legal-qa --format peft", 2),
    ("export legal-qa --format peft -o ./full", 15),
    ("verify legal-qa --engine nothing", 2),
    ("verify ./downloads/pickled --engine all", 16),
    ("ui --port 70000", 2),
    ("ui --project ./nowhere", 10),
    ("serve --base nothing", 10),
    ("serve --base base-7b --python ./nowhere", 10),
    ("serve --base base-7b --engine llama.cpp", 2),
    ("serve --base base-7b --deny ../x", 2),
    ("serve --base base-7b --test", 2),
    ("serve --base base-7b --deny-file ./nowhere", 10),
    ("serve --base base-7b --tenants ./text.txt", 16),
    ("serve --base base-7b --audit-log ./nowhere/log", 14),
    ("serve legal-qa --base base-7b --python ./vllm/python --offline --deny legal-qa", 14),
    ("serve nothing --base base-7b --python ./vllm/python --offline", 10),
    ("serve --base base-7b --python ./vllm/python --port 0 --log ./log --engine-args=--fail", 18),
    ("demo --wheels ./nowhere", 2),
    ("registry serve --limit nothing=1", 2),
    ("registry check --root ./text.txt", 2),
    ("registry move --root ./nowhere --database sqlite:///moved.db", 10),
    ("registry token create --user ann --root ./nowhere", 10),
    ("registry token log --root ./nowhere", 10),
    ("registry token list --users --root ./nowhere", 10),
    ("registry token revoke --user ann --root ./nowhere", 10),
    ("registry gc --root ./nowhere", 10),
    ("registry backup ./copy --root ./nowhere", 10),
    ("registry restore ./nowhere --root ./copy", 10),
    ("registry upgrade --root ./nowhere", 10),
    ("registry import ./nowhere --root ./registry", 10),
    ("registry worker --root ./nowhere --once", 10),
    ("registry meaning --root ./nowhere", 10),
    ("registry webhook add acme http://example.org --root ./nowhere", 10),
    ("registry webhook list --root ./nowhere", 10),
    ("registry webhook remove 1 --root ./nowhere", 10),
    ("registry webhook test 1 --url nothing", 2),
    ("registry webhook deliveries 1 --root ./nowhere", 10),
    ("registry names acme --root ./nowhere", 10),
    ("registry names acme legal --root ./registry", 2),
    ("registry tests acme --root ./nowhere", 10),
    ("registry publishers --root ./nowhere", 10),
    ("registry members acme --root ./nowhere", 10),
    ("registry members acme --add ana --role owner --root ./registry", 2),
    ("registry publishers acme/legal --issuer https://ci.example.org --root ./registry", 2),
    ("registry tests acme --trust nothing --root ./registry", 2),
    ("registry token revoke 99 --root ./nowhere", 10),
    ("registry token list --root ./nowhere", 10),
    ("registry accounts --root ./nowhere", 10),
]


@pytest.mark.parametrize(("line", "code"), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_a_refusal_has_the_exit_code_of_its_class(adapt, line, code, online):
    words = shlex.split(line)

    done = adapt(*words, "--json")

    failure = failure_of(done)
    assert (done.exit_code, failure["exit_code"], CLASSES[str(failure["type"])]) == (code, code, code), done.stderr
    assert str(failure["message"]).strip()


NEVER_REFUSES = {"base list", "key list", "remote list"}
"""Commands that only list what is there."""


def test_every_command_is_refused_for_something_above():
    commands = {" ".join(words) for words in leaves(cli)}
    refused = {command for command in commands if any(f"{line} ".startswith(f"{command} ") for line, _ in REFUSALS)}

    assert commands - refused == NEVER_REFUSES


def test_the_page_has_every_class_and_no_other():
    classes = {name: kind.exit_code for name, kind in vars(errors).items() if is_class_of_ours(kind)}

    assert classes == CLASSES
    assert {code for _, code in REFUSALS} | set(CLASSES.values()) <= TABLE


def test_a_bug_of_ours_is_told_as_one(adapt, monkeypatch):
    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("adapterhub.api.searching.filters_of", breaks)

    done = adapt("list", "--json")

    assert (done.exit_code, failure_of(done)["exit_code"]) == (1, 1)
    assert "a bug in adapterhub: ZeroDivisionError: oh" in done.stderr
    assert 1 in TABLE

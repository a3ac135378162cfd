"""Names that strangers choose: ids of bases, names in recipes, hosts of servers, keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.core.errors import MalformedManifest, UsageProblem
from adapterhub.core.specs import is_hub_id
from adapterhub.distribution.hub._search import _of_model
from adapterhub.formats.base.fingerprint import BaseHints
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest
from adapterhub.library.remotes import parse_url
from adapterhub.projects.lock.lockfile import parse_lock
from tests.support.command_line import Adapt
from tests.support.hostile_kinds import good

NO_IDS = [
    "../../etc/passwd", "--trust-remote-code/x", "-x", "a/-x", "/etc/passwd", "./model", "a/b/c", "a//b", "a/", "/b", "",
    ".", "..", "a/..", "a..b", "a--b", "a.", "a/b-", "C:\\model", "https://h/x", "a b", "a\nb", "a\x1b[2J", "a\u202eb",
    "\u0430cme/x", "x" * 97, "a/" + "x" * 97,
]  # fmt: skip


@pytest.mark.parametrize("text", NO_IDS)
def test_what_is_no_hub_id_is_told_from_one(text: str) -> None:
    assert not is_hub_id(text)


@pytest.mark.parametrize(
    "text", ["gpt2", "acme/base-7b", "HuggingFaceTB/SmolLM2-135M_Instruct", "a/_b", "0/1.5", "x" * 96]
)
def test_hub_ids_are_ids(text: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(text)
    assert is_hub_id(text)


@pytest.mark.parametrize("text", ["../../etc/passwd", "--trust-remote-code/x", "a\u202eb"])
def test_a_manifest_whose_base_has_no_hub_id_is_refused(text: str, tmp_path: Path) -> None:
    folder = good(tmp_path / "made")
    adapt = Adapt(tmp_path)
    adapt.ok("add", "./made", "--name", "m")
    build = next(adapt.library.installed())
    value = json.loads((build.folder / MANIFEST_FILE).read_bytes())
    value["base"] = {"hints": {"hub_id": text}}
    (folder / MANIFEST_FILE).write_text(json.dumps(value))

    with pytest.raises(MalformedManifest, match="hub_id: expected a Hub id"):
        Manifest.read(folder / MANIFEST_FILE)
    assert "hub_id" in Adapt(tmp_path, "other").fails(16, "install", "m", "--from", "./made")
    with pytest.raises(ValueError, match="expected a Hub id"):
        BaseHints.from_json({"hub_id": text})


def test_a_lock_whose_base_has_no_hub_id_is_refused() -> None:
    from adapterhub.core.errors import Malformed

    text = 'schema = "adapterhub-lock/1"\n\n[base]\nspec = "b"\nhub_id = "../../x"\n'

    with pytest.raises(Malformed, match="expected a Hub id"):
        parse_lock(text, "adapters.lock")


def test_a_servers_answer_names_no_base_that_is_no_hub_id() -> None:
    found = _of_model({"id": "a/b", "tags": ["base_model:adapter:--trust-remote-code/x"]})

    assert found.base_hub_id is None


# ---------------------------------------------------------------- recipes
def recipe(folder: Path, name: str) -> Path:
    path = folder / "theirs.toml"
    path.write_text(
        f'format = 1\nname = "{name}"\nversion = "9.0.0"\nmethod = "cat"\n'
        '[[inputs]]\nspec = "./made"\nweight = -1.0\n[[inputs]]\nspec = "./made"\nweight = 0.5\n'
    )
    return path


def test_a_recipe_does_not_choose_what_an_installed_name_means(tmp_path: Path) -> None:
    good(tmp_path / "made")
    adapt = Adapt(tmp_path)
    adapt.ok("add", "./made", "--name", "legal-qa")
    recipe(tmp_path, "legal-qa")
    before = adapt.ok("list")

    said = adapt.fails(15, "merge", "--recipe", "theirs.toml")

    assert "theirs.toml" in said
    assert "`legal-qa` 9.0.0" in said
    assert "`legal-qa` 1.0.0" in said
    assert adapt.ok("list") == before


@pytest.mark.parametrize("more", [["-o", "legal-qa"], ["-o", "other"]])
def test_the_user_may_say_so(more: list[str], tmp_path: Path) -> None:
    good(tmp_path / "made")
    adapt = Adapt(tmp_path)
    adapt.ok("add", "./made", "--name", "legal-qa")
    recipe(tmp_path, "legal-qa")

    adapt.ok("merge", "--recipe", "theirs.toml", *more)

    assert len(list(adapt.library.installed())) == 2


def test_a_recipe_that_gives_the_installed_merge_again_is_no_conflict(tmp_path: Path) -> None:
    good(tmp_path / "made")
    adapt = Adapt(tmp_path)
    adapt.ok("merge", "./made", "-o", "mine")
    text = adapt.ok("show", "mine", "--recipe")
    (tmp_path / "mine.toml").write_text(text)

    assert "already installed" in adapt.ok("merge", "--recipe", "mine.toml")


# ---------------------------------------------------------------- servers
@pytest.mark.parametrize(
    "url",
    [
        "http://a b", "http://user:password@h", "http://user@h", "http://[::1", "http://h.", "http://h..x", "http://.h",
        "http://h:0", "http://h:65536", "http://h:-1", "http://h:x", "http://h\x00", "http://h\n", "http://h\tx",
        "http://h\u202e", "http://huggingface\u3002co", "http://huggingf\u0430ce.co", "http://-h", "http://h-", "http://h%2ex",
        "http://h\\x", "http://h/\\x", "http://h/a/../b", "http://127.1", "http://2130706433", "http://0x7f.0.0.1",
        "http://0x7f000001", "http://256.1.1.1", "http://[v1.x]", "http://[1.2.3.4]", "http://" + "a" * 64,
        "http://" + ".".join(["a" * 60] * 5), "http://", "http:///x", "ftp://h", "h", "http://h?x", "http://h#x", "http://*",
    ],
)  # fmt: skip
def test_an_odd_host_is_refused_with_a_sentence(url: str, tmp_path: Path) -> None:
    said = Adapt(tmp_path)("remote", "add", "odd", url)

    assert said.exit_code == UsageProblem.exit_code
    assert said.stderr.startswith("error: `")
    assert all(c.isprintable() or c == "\n" for c in said.stderr)
    assert not (tmp_path / "home" / "remotes.json").exists()


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("HTTP://Host.Example:80/", "http://host.example"),
        ("https://my_host:8443/sub/path/", "https://my_host:8443/sub/path"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://127.0.0.1:7860", "http://127.0.0.1:7860"),
        ("https://xn--mnchen-3ya.example", "https://xn--mnchen-3ya.example"),
    ],
)
def test_hosts_as_dns_has_them_are_taken(typed: str, url: str) -> None:
    assert parse_url(typed) == url


# ---------------------------------------------------------------- keys
def doubled(pem: str) -> str:
    return pem + pem


def another(pem: str) -> str:
    return pem + "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize("make", [doubled, another])
def test_a_file_with_two_keys_is_refused(make: Callable[[str], str], tmp_path: Path) -> None:
    adapt = Adapt(tmp_path)
    adapt.ok("key", "new", "ana", "--unencrypted")
    pem = adapt.ok("key", "show", "ana")
    (tmp_path / "two.pub").write_text(make(pem))

    said = adapt.fails(16, "key", "trust", "eve", "two.pub")

    assert "2 keys" in said
    assert "eve" not in adapt.ok("key", "list")

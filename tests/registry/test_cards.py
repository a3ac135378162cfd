"""Cards between the client and a registry: both apply the Hub's check, and what the client sends passes it."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from adapterhub_registry.api.hub import info
from adapterhub_registry.database.db import Database, repos
from huggingface_hub import ModelCard

from adapterhub.core.errors import Malformed
from adapterhub.core.specs import parse_name
from adapterhub.distribution.hub import Hub
from adapterhub.formats.release import Release
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.registry.running import Running
from tests.support.tiny import make_adapter

numbers = count(1)
PEFT_CARD = (
    "---\nbase_model: /home/ann/base\ntags:\n- base_model:adapter:/home/ann/base\nlicense: asdf\n---\n\n# My words\n"
)


@pytest.fixture
def team(online) -> str:
    return f"team{next(numbers)}"


@pytest.fixture
def added(library, base, tmp_path):
    """Adds an adapter whose folder has the given README."""

    def make(readme: str):
        folder = make_adapter(tmp_path / "out", base="/home/ann/base")
        (folder / "README.md").write_text(readme)
        return library.add(folder, Description(name=parse_name("qa"), version="1.0.0"), base=base).build

    return make


def send(server: Running, library: Library, build, repo: str, base_hub_id: str = "", **options: object) -> None:
    hub = Hub(endpoint=server.url, token=server.token)
    release = Release(manifest=build.manifest, namespace=None, origin="home", base_hub_id=base_hub_id)
    copy(release, library, hub.to(repo, **options))


def upload(server: Running, team: str, readme: str) -> None:
    """The stock client has the server check a README before it commits one."""
    server.api.create_repo(f"{team}/other", exist_ok=True)
    server.api.upload_file(path_or_fileobj=readme.encode(), path_in_repo="README.md", repo_id=f"{team}/other")


@pytest.mark.parametrize(
    ("front", "words"),
    [
        ("license: asdf", r'"license" must be one of \[apache-2.0'),
        ("base_model: /home/ann/base", r'"base_model" with value "/home/ann/base" is not valid'),
        (
            "model-index:\n- name: x\n  results:\n  - task: {type: a}\n    metrics: []",
            r'results\[0\].dataset" is required',
        ),
    ],
)
def test_the_stock_client_is_told_what_the_hub_would_say(server, team, front, words):
    with pytest.raises(ValueError, match=words):
        upload(server, team, f"---\n{front}\n---\n")


def test_a_clean_card_passes(server, team):
    upload(server, team, "---\nlicense: mit\nbase_model: org/model\nlanguage: no\n---\n# Text\n")


def test_the_card_of_a_push_passes_the_check_and_names_the_base_by_its_id(server, library, added, team):
    send(server, library, added(PEFT_CARD), f"{team}/qa-smol", "org/model")

    there = ModelCard.load(server.api.hf_hub_download(f"{team}/qa-smol", "README.md"))
    tags = server.api.model_info(f"{team}/qa-smol").tags
    assert (there.data.base_model, there.data.license, there.data.license_name) == ("org/model", "other", "asdf")
    assert "# My words" in there.text
    assert f"adapt install {team}/qa-smol==1.0.0 --remote {server.url}" in there.text  # the release that it describes
    assert {"base_model:org/model", "base_model:adapter:org/model"} <= set(tags)
    assert not any("/home/ann" in tag for tag in tags)
    upload(server, team, there.content)


def test_a_card_that_the_server_would_refuse_stops_the_push_before_anything_is_sent(server, library, added, team):
    build = added("---\nlicense: mit\nlanguage: english\n---\n")

    with pytest.raises(Malformed, match=r'"language" with value "english" is not valid.*\(line 3\)') as error:
        send(server, library, build, f"{team}/qa")

    assert "--version" in error.value.hint
    assert not server.api.repo_exists(f"{team}/qa")


def test_a_mirror_leaves_out_what_the_server_would_refuse(server, library, added, team):
    build = added("---\nlicense: mit\nlanguage: english\n---\n")

    send(server, library, build, f"{team}/qa", mends=True)

    there = ModelCard.load(server.api.hf_hub_download(f"{team}/qa", "README.md"))
    assert (there.data.license, there.data.language) == ("mit", None)


def test_the_path_in_a_config_is_no_tag(server, library, added, team):
    send(server, library, added("# Mine\n"), f"{team}/qa")

    assert not any("/home/ann" in tag for tag in server.api.model_info(f"{team}/qa").tags)


def test_a_listing_reads_fewer_rows_at_once_where_cards_are_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "FEW_AT_ONCE", 1)
    monkeypatch.setattr(info, "LISTED_AT_ONCE", 3)
    monkeypatch.setattr(info, "CHARACTERS_AT_ONCE", 20)  # an empty card and configuration have 4
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    with database.begin() as connection:
        for n, characters in enumerate([2, 2, 2, 2, 30, 2, 14, 2], 1):
            names = dict.fromkeys(("full_name", "folded", "namespace", "folded_namespace", "created_by"), f"x/{n}")
            row = names | {"id": n, "private": False, "head": "", "created_at": n, "modified_at": n}
            connection.execute(repos.insert().values(**row, card="{" + " " * (characters - 2) + "}"))

        runs = info.runs_of(connection, [1, 2, 3, 4, 5, 6, 7, 8])

    assert runs == [[1, 2, 3], [4], [5], [6, 7], [8]]
    database.close()

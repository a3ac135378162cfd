"""What is told of repositories: info, trees, paths, and the listing with its filters."""

from __future__ import annotations

import hashlib

from tests.registry.conformance.client import CONFIG, WEIGHTS, Client, check

CARD = """---
license: mit
library_name: peft
pipeline_tag: text-generation
base_model: org/base
datasets: [org/data]
language: en
tags: [lora, my-tag]
---
# An adapter
"""


@check
def info_tells_all(client: Client) -> None:
    repo = client.adapter(CARD)

    info = client.api.model_info(repo)

    assert (info.id, info.author, info.private, info.gated) == (repo, client.prefix, False, False)
    assert (info.pipeline_tag, info.library_name) == ("text-generation", "peft")
    assert info.card_data.license == "mit"
    assert info.config["peft"]["base_model_name_or_path"] == "org/base"
    assert info.created_at <= info.last_modified
    assert len(info.siblings) == 6
    assert info.siblings[0].size is None


@check
def info_with_sizes_and_digests(client: Client) -> None:
    info = client.api.model_info(client.adapter(), files_metadata=True)

    files = {sibling.rfilename: sibling for sibling in info.siblings}
    weights = files["adapter_model.safetensors"]
    assert (weights.size, weights.lfs["sha256"]) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert weights.lfs["size"] == len(WEIGHTS)
    assert files["sub/notes.txt"].blob_id == hashlib.sha1(b"blob 5\0notes").hexdigest()  # noqa: S324 - git's name
    assert files["sub/notes.txt"].lfs is None


@check
def info_of_chosen_members(client: Client) -> None:
    info = client.api.model_info(client.adapter(CARD), expand=["downloads", "tags"])

    assert info.downloads == 0
    assert "my-tag" in info.tags
    assert info.sha is None


@check
def info_at_an_older_revision(client: Client) -> None:
    repo = client.adapter(CARD)
    client.api.create_tag(repo, tag="one")
    client.api.delete_file("README.md", repo_id=repo)

    old, new = client.api.model_info(repo, revision="one"), client.api.model_info(repo)

    assert old.sha != new.sha
    assert old.card_data.license == "mit"
    assert new.card_data is None or new.card_data.to_dict() == {}


@check
def tags_are_derived(client: Client) -> None:
    tags = set(client.api.model_info(client.adapter(CARD)).tags)

    assert tags >= {
        *("peft", "safetensors", "lora", "my-tag", "text-generation", "license:mit", "dataset:org/data"),
        *("base_model:org/base", "base_model:adapter:org/base", f"lora-rank:{CONFIG['r']}"),
    }


@check
def a_folder_is_listed(client: Client) -> None:
    repo = client.adapter()

    top = list(client.api.list_repo_tree(repo))
    below = list(client.api.list_repo_tree(repo, "sub", recursive=True))

    assert [(type(entry).__name__, entry.path) for entry in top] == [
        ("RepoFile", ".gitattributes"),
        ("RepoFile", "README.md"),
        ("RepoFile", "adapter_config.json"),
        ("RepoFile", "adapter_model.safetensors"),
        ("RepoFolder", "sub"),
    ]
    assert [entry.path for entry in below] == ["sub/deep", "sub/deep/more.txt", "sub/notes.txt"]
    weights = next(entry for entry in top if entry.path.endswith(".safetensors"))
    assert (weights.size, weights.lfs["sha256"]) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())


@check
def a_tree_tells_the_last_commits(client: Client) -> None:
    repo = client.repo(a__txt="1", b__txt="1")
    first = client.api.list_repo_commits(repo)[1]
    client.api.upload_file(path_or_fileobj=b"2", path_in_repo="b.txt", repo_id=repo, commit_message="second")

    entries = {entry.path: entry for entry in client.api.list_repo_tree(repo, expand=True)}

    assert entries["a.txt"].last_commit.oid == first.commit_id
    assert entries["b.txt"].last_commit.title == "second"


@check
def paths_are_described(client: Client) -> None:
    repo = client.adapter()

    found = client.api.get_paths_info(repo, ["sub", "README.md", "no-such"], expand=True)

    assert sorted(entry.path for entry in found) == ["README.md", "sub"]
    assert found[0].last_commit is not None


@check
def listing_by_author(client: Client) -> None:
    repo = client.adapter()

    assert repo in [model.id for model in client.api.list_models(author=client.prefix)]
    assert list(client.api.list_models(author="nobody")) == []


@check
def listing_by_tags_needs_all_of_them(client: Client) -> None:
    tag = client.name().replace("/", "-")
    card = CARD.replace("my-tag", tag)
    one, _ = client.adapter(card), client.adapter(card.replace("mit", "gpl"))

    found = client.api.list_models(filter=[tag, "license:mit", f"lora-rank:{CONFIG['r']}"])

    assert [model.id for model in found] == [one]


@check
def listing_by_pipeline_tag_and_search(client: Client) -> None:
    repo = client.adapter(CARD)

    assert [model.id for model in client.api.list_models(search=repo.upper(), pipeline_tag="text-generation")] == [repo]
    assert list(client.api.list_models(search=repo, pipeline_tag="image-classification")) == []


@check
def listing_in_pages_gives_each_once(client: Client) -> None:
    tag = client.name().replace("/", "-")
    repos = [client.adapter(CARD.replace("my-tag", tag)) for _ in range(5)]

    # the client asks for `limit` entries a page, and follows the links until it has as many
    found = [model.id for model in client.api.list_models(filter=tag, limit=5, sort="createdAt")]
    pages = list(pages_of(client, f"/api/models?filter={tag}&limit=2&sort=createdAt"))

    assert found == repos[::-1]
    assert [[model["id"] for model in page] for page in pages] == [repos[:2:-1], repos[2:0:-1], repos[:1]]


def pages_of(client: Client, path: str):
    import json
    import re
    import urllib.request

    url: str | None = client.url + path
    while url:
        with urllib.request.urlopen(url) as answer:
            yield json.load(answer)
            found = re.fullmatch(r'<([^>]+)>; rel="next"', answer.headers.get("Link", ""))
            url = found.group(1) if found else None


@check
def listing_in_an_order(client: Client) -> None:
    tag = client.name().replace("/", "-")
    first, second = (client.adapter(CARD.replace("my-tag", tag)) for _ in range(2))
    client.api.upload_file(path_or_fileobj=b"new", path_in_repo="new.txt", repo_id=first)

    for sort, order in {"createdAt": [second, first], "lastModified": [first, second]}.items():
        assert [model.id for model in client.api.list_models(filter=tag, sort=sort)] == order
    for sort in ("downloads", "likes"):
        assert {model.id for model in client.api.list_models(filter=tag, sort=sort)} == {first, second}


@check
def listing_with_more_members(client: Client) -> None:
    repo = client.adapter(CARD)

    (full,) = client.api.list_models(search=repo, full=True, cardData=True, fetch_config=True)
    (chosen,) = client.api.list_models(search=repo, expand=["downloads"])

    assert full.card_data.license == "mit"
    assert len(full.siblings) == 6
    assert full.config["peft"]["peft_type"] == "LORA"
    assert (chosen.downloads, chosen.tags or None, chosen.sha) == (0, None, None)


@check
def listing_hides_what_is_private(client: Client) -> None:
    repo = client.adapter()
    client.api.update_repo_settings(repo, private=True)

    assert [model.id for model in client.api.list_models(search=repo)] == [repo]
    assert list(client.anonymous.list_models(search=repo)) == []
    assert list(client.as_user("write").list_models(search=repo)) == []
    assert [model.id for model in client.as_user("read", repo).list_models(search=repo)] == [repo]

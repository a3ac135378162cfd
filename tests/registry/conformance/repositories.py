"""Identity, repositories, branches, tags and history."""

from __future__ import annotations

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.registry.conformance.client import Client, check, raises, status_of


@check
def whoami_names_the_user(client: Client) -> None:
    me = client.api.whoami()

    assert me["name"] == "admin"
    assert me["orgs"] == []
    assert me["auth"]["accessToken"]["role"] == "write"


@check
def whoami_lists_the_namespaces_of_the_token(client: Client) -> None:
    me = client.as_user("read", "acme", "other/*").whoami()

    assert [org["name"] for org in me["orgs"]] == ["acme", "other"]
    assert me["auth"]["accessToken"]["role"] == "read"


@check
def create_repo_gives_its_url(client: Client) -> None:
    repo = client.name()

    url = client.api.create_repo(repo)

    assert str(url) == f"{client.url}/{repo}"
    assert url.repo_id == repo
    assert client.api.repo_exists(repo)


@check
def create_repo_without_namespace_is_the_users_own(client: Client) -> None:
    name = client.name().replace("/", "")

    assert client.as_user("write").create_repo(name).repo_id == f"bob/{name}"


@check
def create_repo_twice_is_a_conflict(client: Client) -> None:
    repo = client.repo()

    error = raises(HfHubHTTPError, lambda: client.api.create_repo(repo))

    assert status_of(error) == 409


@check
def create_repo_with_exist_ok_gives_the_same_url(client: Client) -> None:
    repo = client.name()

    assert client.api.create_repo(repo) == client.api.create_repo(repo, exist_ok=True)


@check
def create_repo_private(client: Client) -> None:
    repo = client.name()

    client.api.create_repo(repo, private=True)

    assert client.api.model_info(repo).private is True


@check
def a_new_repository_has_a_head_and_one_file(client: Client) -> None:
    info = client.api.model_info(client.repo())

    assert len(info.sha or "") == 40
    assert [sibling.rfilename for sibling in info.siblings] == [".gitattributes"]


@check
def delete_repo(client: Client) -> None:
    repo = client.repo(a__txt="a")

    client.api.delete_repo(repo)

    assert not client.api.repo_exists(repo)
    client.api.create_repo(repo)
    assert client.files(repo) == []


@check
def delete_repo_that_is_missing(client: Client) -> None:
    repo = client.name()

    raises(RepositoryNotFoundError, lambda: client.api.delete_repo(repo))
    client.api.delete_repo(repo, missing_ok=True)


@check
def move_repo(client: Client) -> None:
    old, new = client.repo(a__txt="a"), client.name()

    client.api.move_repo(from_id=old, to_id=new)

    assert client.api.model_info(old).id == new
    assert client.read(new, "a.txt") == client.read(old, "a.txt") == b"a"


@check
def an_id_is_found_in_any_case(client: Client) -> None:
    repo = client.repo(a__txt="a")

    client.api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=repo.upper())

    assert client.api.model_info(repo.upper()).id == repo
    assert client.read(repo, "b.txt") == b"b"


@check
def move_repo_onto_another_is_refused(client: Client) -> None:
    one, other = client.repo(), client.repo()

    raises(HfHubHTTPError, lambda: client.api.move_repo(from_id=one, to_id=other))


@check
def update_repo_settings_changes_visibility(client: Client) -> None:
    repo = client.repo()

    client.api.update_repo_settings(repo, private=True)
    was_private = client.api.model_info(repo).private
    client.api.update_repo_settings(repo, private=False)

    assert was_private is True
    assert client.api.model_info(repo).private is False


@check
def update_repo_settings_gates_and_opens(client: Client) -> None:
    repo = client.repo()

    client.api.update_repo_settings(repo, gated="auto")
    gated = client.api.model_info(repo).gated
    client.api.update_repo_settings(repo, gated=False)

    assert gated == "auto"
    assert client.api.model_info(repo).gated is False


@check
def auth_check(client: Client) -> None:
    repo = client.repo()

    client.api.auth_check(repo)
    raises(RepositoryNotFoundError, lambda: client.api.auth_check(client.name()))


@check
def branches_are_made_listed_and_removed(client: Client) -> None:
    repo = client.repo(a__txt="a")
    head = client.api.model_info(repo).sha

    client.api.create_branch(repo, branch="dev")
    refs = client.api.list_repo_refs(repo)
    client.api.delete_branch(repo, branch="dev")

    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": head, "dev": head}
    assert [branch.ref for branch in refs.branches if branch.name == "dev"] == ["refs/heads/dev"]
    assert [branch.name for branch in client.api.list_repo_refs(repo).branches] == ["main"]


@check
def a_branch_twice_is_a_conflict(client: Client) -> None:
    repo = client.repo()
    client.api.create_branch(repo, branch="dev")

    error = raises(HfHubHTTPError, lambda: client.api.create_branch(repo, branch="dev"))
    client.api.create_branch(repo, branch="dev", exist_ok=True)

    assert status_of(error) == 409


@check
def a_branch_name_may_hold_slashes(client: Client) -> None:
    repo = client.repo(a__txt="on main")
    client.api.create_branch(repo, branch="feat/x")

    client.api.upload_file(path_or_fileobj=b"on it", path_in_repo="a.txt", repo_id=repo, revision="feat/x")

    assert client.read(repo, "a.txt", revision="feat/x") == b"on it"
    assert client.read(repo, "a.txt") == b"on main"
    assert client.files(repo, revision="feat/x") == ["a.txt"]
    client.api.delete_branch(repo, branch="feat/x")


@check
def a_branch_may_start_anywhere(client: Client) -> None:
    repo = client.repo(a__txt="1")
    first = client.api.model_info(repo).sha
    client.api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo)

    client.api.create_branch(repo, branch="old", revision=first)

    assert client.read(repo, "a.txt", revision="old") == b"1"


@check
def tags_are_made_listed_and_removed(client: Client) -> None:
    repo = client.repo(a__txt="1")
    client.api.create_tag(repo, tag="first", tag_message="the first")
    client.api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo)

    tags = client.api.list_repo_refs(repo).tags

    assert [tag.name for tag in tags] == ["first"]
    assert client.read(repo, "a.txt", revision="first") == b"1"
    client.api.delete_tag(repo, tag="first")
    assert client.api.list_repo_refs(repo).tags == []


@check
def a_tag_twice_is_a_conflict(client: Client) -> None:
    repo = client.repo()
    client.api.create_tag(repo, tag="release/one")

    error = raises(HfHubHTTPError, lambda: client.api.create_tag(repo, tag="release/one"))
    client.api.create_tag(repo, tag="release/one", exist_ok=True)

    assert status_of(error) == 409


@check
def a_tag_that_is_missing_cannot_be_removed(client: Client) -> None:
    repo = client.repo()

    raises(RevisionNotFoundError, lambda: client.api.delete_tag(repo, tag="no-such"))


@check
def exists_calls_tell(client: Client) -> None:
    repo = client.repo(a__txt="a")

    found = [client.api.file_exists(repo, "a.txt"), client.api.file_exists(repo, "b.txt")]
    found += [client.api.revision_exists(repo, "main"), client.api.revision_exists(repo, "dev")]
    found += [client.api.repo_exists(repo), client.api.repo_exists(client.name())]

    assert found == [True, False, True, False, True, False]


@check
def history_is_listed_newest_first(client: Client) -> None:
    repo = client.repo(a__txt="1")
    client.api.upload_file(
        path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo, commit_message="second", commit_description="why"
    )

    made = client.api.list_repo_commits(repo)

    assert [commit.title for commit in made][::2] == ["second", "initial commit"]
    assert made[0].message == "why"
    assert made[0].authors == ["admin"]
    assert made[0].commit_id == client.api.model_info(repo).sha
    assert made[0].created_at >= made[1].created_at


@check
def a_long_history_comes_in_pages(client: Client) -> None:
    repo = client.repo()
    names = [f"{number}.txt" for number in range(53)]
    added = [CommitOperationAdd(name, name.encode()) for name in names]
    client.api.create_commit(repo, added, commit_message="all")
    for name in names:  # one request each, where an upload takes two
        client.api.create_commit(repo, [CommitOperationDelete(name)], commit_message="one less")

    made = client.api.list_repo_commits(repo)

    assert len({commit.commit_id for commit in made}) == len(made) == 55

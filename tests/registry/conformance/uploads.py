"""Files on their way in, by every road that the client has."""

from __future__ import annotations

import hashlib
import io

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

from tests.registry.conformance.client import WEIGHTS, Client, check, raises, status_of

LARGE = bytes(range(251)) * 50_000  # 12.5 MB: in parts on a server that splits from 8 MiB on


@check
def upload_bytes(client: Client) -> None:
    repo = client.repo(a__txt="hello")

    assert client.read(repo, "a.txt") == b"hello"


@check
def upload_a_file_by_path(client: Client) -> None:
    repo, path = client.repo(), client.file("w.safetensors", WEIGHTS)

    done = client.api.upload_file(path_or_fileobj=path, path_in_repo="weights/w.safetensors", repo_id=repo)

    assert client.read(repo, "weights/w.safetensors") == WEIGHTS
    assert done.oid == client.api.model_info(repo).sha
    assert done.commit_url == f"{client.url}/{repo}/commit/{done.oid}"


@check
def upload_a_file_object(client: Client) -> None:
    repo = client.repo()

    client.api.upload_file(path_or_fileobj=io.BytesIO(WEIGHTS), path_in_repo="w.safetensors", repo_id=repo)

    assert client.read(repo, "w.safetensors") == WEIGHTS


@check
def upload_an_open_file(client: Client) -> None:
    repo, path = client.repo(), client.file("w.bin", LARGE)

    with path.open("rb") as stream:
        operations = [CommitOperationAdd("w.bin", stream)]
        client.api.create_commit(repo, operations, commit_message="by hand")

    assert client.read(repo, "w.bin") == LARGE


@check
def upload_an_empty_file(client: Client) -> None:
    repo = client.repo(empty__txt=b"", empty__safetensors=b"")

    assert client.read(repo, "empty.txt") == b""
    assert client.read(repo, "empty.safetensors") == b""


@check
def upload_a_large_file(client: Client) -> None:
    repo, path = client.repo(), client.file("w.safetensors", LARGE)

    client.api.upload_file(path_or_fileobj=path, path_in_repo="w.safetensors", repo_id=repo)

    siblings = client.api.model_info(repo, files_metadata=True).siblings
    (sibling,) = [sibling for sibling in siblings if sibling.rfilename == "w.safetensors"]
    assert sibling.lfs["sha256"] == hashlib.sha256(LARGE).hexdigest()
    assert client.read(repo, "w.safetensors") == LARGE


@check
def upload_a_folder(client: Client) -> None:
    repo = client.adapter()

    files = client.files(repo)

    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "sub/deep/more.txt", "sub/notes.txt"]
    assert sorted(files) == names
    assert client.read(repo, "adapter_model.safetensors") == WEIGHTS


@check
def upload_a_folder_in_part(client: Client) -> None:
    repo, folder = client.repo(), client.adapter_folder()

    client.api.upload_folder(repo_id=repo, folder_path=folder, path_in_repo="in", allow_patterns="*.txt")

    assert sorted(client.files(repo)) == ["in/sub/deep/more.txt", "in/sub/notes.txt"]


@check
def upload_a_folder_and_delete_what_it_lacks(client: Client) -> None:
    repo, folder = client.adapter(), client.adapter_folder()
    (folder / "sub" / "notes.txt").unlink()

    client.api.upload_folder(repo_id=repo, folder_path=folder, delete_patterns="*.txt")

    assert "sub/notes.txt" not in client.files(repo)
    assert "sub/deep/more.txt" in client.files(repo)


@check
def upload_to_a_branch(client: Client) -> None:
    repo = client.repo(a__txt="main")
    client.api.create_branch(repo, branch="dev")

    client.api.upload_folder(repo_id=repo, folder_path=client.adapter_folder(), revision="dev")

    assert client.files(repo) == ["a.txt"]
    assert client.read(repo, "adapter_model.safetensors", revision="dev") == WEIGHTS


@check
def the_same_bytes_again_make_no_commit(client: Client) -> None:
    repo, folder = client.adapter(), client.adapter_folder()
    head = client.api.model_info(repo).sha

    client.api.upload_folder(repo_id=repo, folder_path=folder)
    client.api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="adapter_model.safetensors", repo_id=repo)
    client.api.upload_file(path_or_fileobj=b"notes", path_in_repo="sub/notes.txt", repo_id=repo)

    assert client.api.model_info(repo).sha == head


@check
def the_same_bytes_elsewhere_are_known(client: Client) -> None:
    one, other = client.repo(w__safetensors=WEIGHTS), client.repo()

    client.api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.safetensors", repo_id=other)

    assert client.read(one, "w.safetensors") == client.read(other, "w.safetensors") == WEIGHTS


@check
def preupload_then_commit(client: Client) -> None:
    repo = client.repo()
    addition = CommitOperationAdd("w.safetensors", client.file("w", LARGE))

    client.api.preupload_lfs_files(repo, [addition])
    client.api.create_commit(repo, [addition], commit_message="later")

    assert client.read(repo, "w.safetensors") == LARGE


@check
def a_commit_of_many_kinds(client: Client) -> None:
    repo = client.repo(old__txt="old", old__safetensors=WEIGHTS)
    operations = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationAdd("new.safetensors", WEIGHTS[1:]),
        CommitOperationDelete("old.txt"),
        CommitOperationCopy("old.safetensors", "copy.safetensors"),
    ]

    client.api.create_commit(repo, operations, commit_message="all at once")

    names = ["copy.safetensors", "new.safetensors", "new.txt", "old.safetensors"]
    assert sorted(client.files(repo)) == names
    assert client.read(repo, "copy.safetensors") == WEIGHTS


@check
def copy_a_regular_file(client: Client) -> None:
    repo = client.repo(a__txt="a")

    client.api.create_commit(repo, [CommitOperationCopy("a.txt", "b.txt")], commit_message="copy")

    assert client.read(repo, "b.txt") == b"a"


@check
def delete_a_file(client: Client) -> None:
    repo = client.repo(a__txt="a", b__txt="b")

    client.api.delete_file("a.txt", repo_id=repo)

    assert client.files(repo) == ["b.txt"]


@check
def delete_a_folder(client: Client) -> None:
    repo = client.adapter()

    client.api.delete_folder("sub", repo_id=repo)

    assert not [name for name in client.files(repo) if name.startswith("sub")]


@check
def delete_what_is_missing(client: Client) -> None:
    repo = client.repo(a__txt="a")

    error = raises(EntryNotFoundError, lambda: client.api.delete_file("b.txt", repo_id=repo))

    assert "A file with this name doesn't exist" in str(error)
    assert client.files(repo) == ["a.txt"]


@check
def a_commit_on_the_head_it_names(client: Client) -> None:
    repo = client.repo(a__txt="1")
    head = client.api.model_info(repo).sha

    operations = [CommitOperationAdd("a.txt", b"2")]
    client.api.create_commit(repo, operations, commit_message="on the head", parent_commit=head)

    assert client.read(repo, "a.txt") == b"2"


@check
def a_commit_on_an_old_head_is_refused(client: Client) -> None:
    repo = client.repo(a__txt="1")
    head = client.api.model_info(repo).sha
    client.api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo)
    operations = [CommitOperationAdd("a.txt", b"3")]

    error = raises(
        HfHubHTTPError,
        lambda: client.api.create_commit(repo, operations, commit_message="stale", parent_commit=head),
    )

    assert status_of(error) == 412
    assert client.read(repo, "a.txt") == b"2"


@check
def the_same_commit_on_the_same_head_again(client: Client) -> None:
    repo = client.repo(a__txt="1")
    head = client.api.model_info(repo).sha

    def send() -> str:
        operations = [CommitOperationAdd("a.txt", b"2"), CommitOperationDelete("a.txt")]
        operations.append(CommitOperationAdd("b.txt", b"3"))
        return str(client.api.create_commit(repo, operations[:1], commit_message="once", parent_commit=head).oid)

    assert send() == send()


@check
def a_commit_on_a_missing_branch(client: Client) -> None:
    repo = client.repo()

    raises(
        RevisionNotFoundError,
        lambda: client.api.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=repo, revision="no-such"),
    )


@check
def a_pull_request_is_not_offered(client: Client) -> None:
    repo = client.repo()

    error = raises(
        HfHubHTTPError,
        lambda: client.api.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=repo, create_pr=True),
    )

    assert status_of(error) == 501


@check
def a_card_with_broken_metadata_is_refused(client: Client) -> None:
    repo = client.repo()
    card = b"---\nlicense: [mit\n---\n"

    raises(ValueError, lambda: client.api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo))

    assert client.files(repo) == []


@check
def odd_names_come_back_unharmed(client: Client) -> None:
    repo = client.repo()
    names = ["with space.txt", "100%.txt", "a%2Fb.txt", "ünïcode/ß.txt", "plus+and#hash?.txt", "q'uote\"s;.txt"]

    for name in names:
        client.api.upload_file(path_or_fileobj=name.encode(), path_in_repo=name, repo_id=repo)

    assert sorted(client.files(repo)) == sorted(names)
    assert [client.read(repo, name) for name in names] == [name.encode() for name in names]
    assert [info.path for info in client.api.get_paths_info(repo, names)] == sorted(names)

"""`adapters.lock`: one text for one lock, in any order; damage is refused with its line; staleness needs no network."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.core.digests import Digest
from adapterhub.core.errors import Malformed, NotAllowed, NotFound
from adapterhub.core.specs import parse_name
from adapterhub.projects.file import parse_project
from adapterhub.projects.lock import lockfile
from adapterhub.projects.lock.lockfile import (
    MOST_ENTRIES,
    lock_problems,
    lock_text,
    locked_step,
    parse_lock,
    read_lock,
    write_lock,
)
from adapterhub.projects.values import (
    Lock,
    LockedAdapter,
    LockedBase,
    LockedFile,
    LockedMerge,
    LockedSource,
    Policy,
    Project,
)
from adapterhub.weights.recipes.toml import Inner, Leaf, MergeStep
from tests.support.hostile_child import slowness
from tests.support.locks import in_directory, on_hub

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEX = "0123456789abcdef"
digests = st.text(HEX, min_size=64, max_size=64).map(lambda text: Digest(f"sha256:{text}"))
names = st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True).map(parse_name)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
words = texts.filter(bool)
hub_ids = st.sampled_from(["gpt2", "org/base-7b", "Org/Base_7B.v2"])
ranks = st.none() | st.integers(1, 512)
versions = st.sampled_from(["1.0", "1.2.0", "2.0rc1", "0+0123456789ab", "1.0.0+abc"])
file_lists = st.lists(
    st.builds(
        LockedFile,
        path=st.from_regex(r"[a-z]{1,8}\.[a-z]{1,5}", fullmatch=True),
        sha256=digests,
        size_bytes=st.integers(0, 1 << 40),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda file: file.path,
).map(lambda files: tuple(sorted(files, key=lambda file: file.path)))
sources = st.one_of(
    st.just(LockedSource()),
    st.builds(in_directory, words, names),
    st.builds(
        on_hub,
        url=st.just("https://a.example"),
        repo=st.just("acme/x"),
        commit=st.text(HEX, min_size=40, max_size=40),
    ),
)
leaves = st.builds(
    Leaf,
    spec=st.sampled_from(["legal-qa==1.0", "acme/summarize==1.2.0"]),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    digest=digests,
)


def steps(inputs):
    return st.builds(
        MergeStep,
        method=st.just("ties_svd"),
        inputs=st.lists(inputs, min_size=1, max_size=3).map(tuple),
        options=st.fixed_dictionaries(
            {}, optional={"rank": st.integers(1, 64), "density": st.floats(0.01, 1.0), "majority": st.just("total")}
        ),
        dtype=st.none() | st.just("bfloat16"),
    )


recipes = steps(leaves | st.builds(Inner, weight=st.floats(-2, 2), step=steps(leaves)))
adapters = st.builds(
    LockedAdapter,
    key=names,
    wanted=words,
    name=st.sampled_from(["legal-qa", "acme/summarize"]),
    version=versions,
    digest=digests,
    base=st.none() | digests,
    rank=ranks,
    source=sources,
    files=file_lists,
    group=st.none() | names,
)
merges = st.builds(
    LockedMerge,
    key=names,
    version=versions,
    digest=digests,
    base=st.none() | digests,
    rank=ranks,
    step=recipes,
    task=st.none() | texts,
    description=texts,
    license=st.none() | texts,
    source=sources,
    files=file_lists,
    group=st.none() | names,
)
bases = st.builds(
    LockedBase, spec=words, weights=st.none() | digests, tensors=st.none() | digests, hub_id=st.none() | hub_ids
)
policies = st.builds(
    Policy,
    allow_licenses=st.lists(words, max_size=2).map(tuple),
    deny_methods=st.lists(words, max_size=2).map(tuple),
    max_rank=ranks,
    exclude_newer=st.none() | st.just("7d"),
)


@st.composite
def locks(draw):
    entries = draw(st.lists(adapters | merges, max_size=5, unique_by=lambda entry: entry.key))
    ordered = sorted(entries, key=lambda entry: entry.key)
    return Lock(
        base=draw(st.none() | bases),
        policy=draw(policies),
        adapters=tuple(e for e in ordered if isinstance(e, LockedAdapter)),
        merges=tuple(e for e in ordered if isinstance(e, LockedMerge)),
    )


def digest(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def adapter(key: str, **more) -> LockedAdapter:
    values = {
        "wanted": key,
        "name": key,
        "version": "1.0.0",
        "digest": digest(1),
        "base": digest(2),
        "rank": 4,
        "source": LockedSource(),
        "files": (
            LockedFile(path="adapter_config.json", sha256=digest(3), size_bytes=189),
            LockedFile(path="adapter_model.safetensors", sha256=digest(4), size_bytes=2024),
        ),
    }
    return LockedAdapter(key=parse_name(key), **(values | more))


# ---------------------------------------------------------------- laws
@given(lock=locks())
def test_parse_is_the_inverse_of_print(lock):
    text = lock_text(lock)

    assert parse_lock(text) == lock
    assert lock_text(parse_lock(text)) == text


@pytest.mark.slow
@given(lock=locks(), seed=st.integers(0, 1000))
def test_the_order_of_the_parts_does_not_matter(lock, seed):
    shuffle = random.Random(seed)

    def mixed(entries):
        return tuple(
            replace(entry, files=tuple(shuffle.sample(entry.files, len(entry.files))))
            for entry in shuffle.sample(entries, len(entries))
        )

    other = replace(lock, adapters=mixed(lock.adapters), merges=mixed(lock.merges))

    assert lock_text(other) == lock_text(lock)


@given(lock=locks())
def test_any_toml_reader_reads_it_and_a_terminal_shows_it(lock):
    text = lock_text(lock)
    document = tomllib.loads(text)

    assert [entry["digest"] for entry in document.get("adapter", [])] == [entry.digest for entry in lock.adapters]
    assert [entry["recipe"]["method"] for entry in document.get("merge", [])] == [e.step.method for e in lock.merges]
    assert all(character.isprintable() or character == "\n" for character in text)


@given(lock=locks(), data=st.data())
def test_a_damaged_text_is_refused_or_says_the_same(lock, data):
    text = lock_text(lock)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.sampled_from(["", "x", "\n", '"', "0", "]", " "])) + text[at + 1 :]

    told = ""
    try:
        assert lock_text(parse_lock(damaged)) == damaged
    except Malformed as refused:
        told = refused.message
    assert not told or ("line " in told and "Nothing was changed" in told)


# ---------------------------------------------------------------- what it looks like
def test_the_text_of_a_lock():
    lock = Lock(
        base=LockedBase(spec="base-7b", weights=digest(2), hub_id="org/base-7b"),
        policy=Policy(max_rank=64, deny_licenses=("GPL-3.0-only",)),
        adapters=(
            adapter(
                "legal-qa",
                wanted="acme/legal-qa>=1.2,<2 rank=-16",
                name="acme/legal-qa",
                source=on_hub("https://a.example", "acme/legal-qa", "0" * 40, "ours"),
            ),
        ),
        merges=(
            LockedMerge(
                key=parse_name("both"),
                version="1.0.0",
                digest=digest(5),
                base=digest(2),
                rank=8,
                step=MergeStep(
                    method="svd",
                    options={"rank": 8},
                    inputs=(Leaf(spec="acme/legal-qa==1.0.0", weight=0.7, digest=digest(1)),),
                ),
                task="two",
                description='a "quoted" line\nand a bell \x07',
                license=None,
                source=LockedSource(),
                files=(LockedFile(path="adapter_config.json", sha256=digest(3), size_bytes=5),),
                group="eval",
            ),
        ),
    )

    short = lock_text(lock).replace("0" * 40, "…").replace("sha256:" + "0" * 63, "sha256:…")

    assert short.replace("…" + "0" * 23, "…") == (
        """\
# Written by `adapt lock` from adapters.toml, which is the file to edit.
schema = "adapterhub-lock/1"

[base]
spec = "base-7b"
weights = "sha256:…2"
hub_id = "org/base-7b"

[policy]
deny-licenses = [ "GPL-3.0-only" ]
max-rank = 64

[[adapter]]
key = "legal-qa"
wanted = "acme/legal-qa>=1.2,<2 rank=-16"
name = "acme/legal-qa"
version = "1.0.0"
digest = "sha256:…1"
base = "sha256:…2"
rank = 4
source = { remote = "ours", url = "https://a.example", repo = "acme/legal-qa", commit = "…" }
files = [
  { path = "adapter_config.json", sha256 = "sha256:…3", size = 189 },
  { path = "adapter_model.safetensors", sha256 = "sha256:…4", size = 2024 },
]

[[merge]]
key = "both"
version = "1.0.0"
digest = "sha256:…5"
base = "sha256:…2"
rank = 8
group = "eval"
task = "two"
description = "a \\"quoted\\" line\\nand a bell \\u0007"
source = {}
files = [
  { path = "adapter_config.json", sha256 = "sha256:…3", size = 5 },
]

[merge.recipe]
method = "svd"
options = { rank = 8 }
inputs = [
  { spec = "acme/legal-qa==1.0.0", weight = 0.7, digest = "sha256:…1" },
]
"""
    )


# ---------------------------------------------------------------- damage
LOCK = Lock(base=LockedBase(spec="base-7b", weights=digest(2)), adapters=(adapter("legal-qa"), adapter("tables")))
TEXT = lock_text(LOCK)
FIRST = TEXT.split("\n").index("[[adapter]]") + 1  # its line


def line_of(text: str, start: str) -> int:
    return next(number for number, line in enumerate(text.split("\n"), 1) if line.startswith(start))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('digest = "sha256:', 'digest = "sha512:', "digest: expected sha256:<64 lower-case hex digits>"),
        ('version = "1.0.0"', 'version = "1.0.0.0-x"', "version: `1.0.0.0-x`: not a version"),
        ('version = "1.0.0"', 'version = "v1.0"', "version: expected `1.0`, got `v1.0`"),
        ("rank = 4", "rank = 0", "rank: a rank is at least 1, got 0"),
        ("rank = 4", 'rank = "4"', "rank: expected a whole number, got text `4`"),
        ("rank = 4", "rnak = 4", "rnak: no such key; did you mean `rank`?"),
        ("rank = 4", "rank = 4\nrank = 4", "Cannot overwrite a value"),
        ("rank = 4", "rank: 4", "Expected '=' after a key"),
        ("rank = 4", "rank = 04", "Expected newline or end of document"),
        ("size = 189 }", "size = -1 }", "size: expected a whole number of bytes, got -1"),
        ("size = 189 }", "size = 1 } }", "Unclosed array"),
        ('path = "adapter_config.json"', 'path = "../../etc/passwd"', "path: expected the name of a file"),
        ("source = {}", 'source = { url = "https://A.example" }', "source.url: expected `https://a.example`"),
        ("source = {}", 'source = { url = "https://a.example", repo = "a/b" }', "`url`, `repo` and `commit` stand together"),
        ("source = {}", 'source = { url = "https://a.example", path = "p" }', "expected either `url` or `path`"),
        ("source = {}", "source = { where = 1 }", "source.where: no such key; there are"),
        ('name = "legal-qa"', 'name = "legal-qa>=1"', "name: expected a name"),
        ('key = "legal-qa"', 'key = "tables"', "`tables` is locked twice"),
        ('name = "legal-qa"', "", "name: missing"),
        ("[[adapter]]", "[[adaptor]]", "adaptor: no such key; did you mean `adapter`?"),
        ('wanted = "legal-qa"', "wanted = 'legal-qa'", 'expected `wanted = "legal-qa"`'),
        ('wanted = "legal-qa"', 'wanted = "legal\\q"', "Unescaped"),
        ('wanted = "legal-qa"', 'wanted  =  "legal-qa"', 'expected `wanted = "legal-qa"`'),
        ('wanted = "legal-qa"', 'wanted =  "legal-qa"', 'expected `wanted = "legal-qa"`'),
    ],
)  # fmt: skip
def test_damage_is_refused_with_its_line(old, new, told):
    damaged = TEXT.replace(old, new, 1)

    with pytest.raises(Malformed) as refused:
        parse_lock(damaged)

    lines = refused.value.message.split("\n")
    found = [line.strip() for line in lines if told in line]
    assert found, refused.value.message
    changed = [n for n, (a, b) in enumerate(zip(TEXT.split("\n"), damaged.split("\n"), strict=False), 1) if a != b]
    number = int(found[0].split(":")[0].removeprefix("line "))
    assert number in {*changed, FIRST, line_of(TEXT, "[[adapter]]"), *range(FIRST, FIRST + 30)}
    assert "delete it and run `adapt lock`" in refused.value.hint


@pytest.mark.parametrize("lost", ["digest = ", "  { path"])
def test_all_hashes_or_none(lost):
    kept = [line for line in TEXT.split("\n") if not line.startswith(lost)]

    with pytest.raises(Malformed, match=r"missing|every file of a build is locked with its hash"):
        parse_lock("\n".join(kept))


def test_a_line_that_says_the_same_otherwise_is_refused():
    swapped = TEXT.replace("rank = 4\nsource = {}", "source = {}\nrank = 4", 1)

    with pytest.raises(Malformed, match=f"line {line_of(TEXT, 'rank')}: expected `rank = 4`, got `source = {{}}`"):
        parse_lock(swapped)
    with pytest.raises(Malformed, match="line 1: expected `# Written by"):
        parse_lock("# mine\n" + TEXT)


def test_both_sides_of_a_merge_are_named_as_such():
    text = TEXT.replace("rank = 4\n", "<<<<<<< ours\nrank = 4\n=======\nrank = 8\n>>>>>>> theirs\n", 1)

    with pytest.raises(Malformed) as refused:
        parse_lock(text)

    assert f"line {line_of(text, '<<<<<<<')}: holds both sides of a merge" in refused.value.message
    assert "git checkout --ours adapters.lock" in refused.value.hint


def test_a_newer_schema_is_not_called_damage():
    with pytest.raises(Malformed) as refused:
        parse_lock(TEXT.replace("adapterhub-lock/1", "adapterhub-lock/2"))

    assert "line 2: schema: expected `adapterhub-lock/1`, got `adapterhub-lock/2`" in refused.value.message
    assert "pip install -U adapterhub" in refused.value.hint


@pytest.mark.parametrize("repository", ["acme/tables-base-7b", "Acme/Tables"])
def test_a_build_of_a_repository_has_a_name_of_its_owner(repository):
    source = on_hub("https://a.example", repository, "0" * 40)
    entry = replace(LOCK.adapters[0], name="acme/tables", source=source)
    text = lock_text(Lock(base=None, adapters=(entry,)))

    assert parse_lock(text).adapters == (entry,)
    with pytest.raises(Malformed, match=r"`globex/tables` is not published by `[Aa]cme`, but by `globex`"):
        parse_lock(text.replace('"acme/tables"', '"globex/tables"'))


def test_line_ends_of_windows_are_no_damage(tmp_path):
    as_checked_out = lock_text(LOCK).replace("\n", "\r\n").encode()
    (tmp_path / "adapters.lock").write_bytes(as_checked_out)

    assert read_lock(tmp_path) == LOCK
    assert not write_lock(tmp_path, LOCK)
    assert (tmp_path / "adapters.lock").read_bytes() == as_checked_out
    with pytest.raises(Malformed, match="line 2"):
        parse_lock(TEXT.replace('/1"\n', '/1"\r\n'))


def test_a_file_that_is_no_text_is_refused_with_its_line(tmp_path):
    (tmp_path / "adapters.lock").write_bytes(TEXT.encode() + b"\xff\n")

    with pytest.raises(Malformed, match=f"line {TEXT.count(chr(10)) + 1}: not UTF-8"):
        read_lock(tmp_path)


def test_a_lock_is_written_once_and_read_back(tmp_path):
    assert write_lock(tmp_path, LOCK)
    before = (tmp_path / "adapters.lock").stat()
    assert not write_lock(tmp_path, replace(LOCK, adapters=LOCK.adapters[::-1]))
    after = (tmp_path / "adapters.lock").stat()

    assert read_lock(tmp_path) == LOCK
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == ["adapters.lock"]


def test_a_project_without_a_lock_says_how_to_get_one(tmp_path):
    with pytest.raises(NotFound) as refused:
        read_lock(tmp_path)

    assert refused.value.hint == "`adapt lock` writes it"


# ---------------------------------------------------------------- staleness
PROJECT = """
[project]
base = "base-7b"
[adapters]
legal-qa = "*"
[groups.eval]
tables = { rank = "-8" }
[merges.both]
inputs = [ { adapter = "legal-qa", weight = 0.5 }, { adapter = "tables", weight = 0.5 } ]
"""


def project(text: str = PROJECT) -> Project:
    return parse_project(text.encode(), Path("/p"), "adapters.toml")


def current() -> Lock:
    """A lock that answers `PROJECT`."""
    lock = Lock(
        base=LockedBase(spec="base-7b", weights=digest(2)),
        adapters=(adapter("legal-qa"), adapter("tables", wanted="tables rank=-8", group="eval", digest=digest(9))),
    )
    wanted = project().merges[0]
    both = LockedMerge(
        key=wanted.key,
        version="1.0.0+abc",
        digest=digest(7),
        base=digest(2),
        rank=8,
        step=locked_step(wanted.step, lock.entries),
        task=None,
        description="",
        license=None,
        source=LockedSource(),
        files=lock.adapters[0].files,
    )
    return replace(lock, merges=(both,))


def test_a_lock_that_answers_the_project_has_no_problems():
    assert lock_problems(project(), current()) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('base = "base-7b"', 'base = "other"', ["the base is locked as `base-7b`, but the project requires `other`"]),
        ('base = "base-7b"', "", ["the base is locked as `base-7b`, but the project requires nothing"]),
        ('legal-qa = "*"', 'legal-qa = ">=2"', ["`legal-qa` is locked for `legal-qa`, but the project requires `legal-qa>=2`"]),
        ('rank = "-8"', 'rank = "-4"', ["`tables` is locked for `tables rank=-8`, but the project requires `tables rank=-4`"]),
        ('legal-qa = "*"', 'legal-qa = "*"\nmore = "*"', ["`more` is not locked"]),
        ("[groups.eval]\n", "", ["`tables` is locked in group `eval`, but the project has it in no group"]),
        ("0.5 }, {", "0.4 }, {", ["`both` is locked with a different recipe or different inputs"]),
        ("[merges.both]", "[merges.other]", ["`other` is not locked", "`both` is locked, but the project does not list it"]),
        ("[merges.both]", "[merges.both]\ntask = 'x'", ["`both` is locked with a different task"]),
        ("[merges.both]", "[merges.both]\nversion = '2.0'", ["`both` is locked as 1.0.0+abc, but the project gives it version 2.0"]),
        ("[adapters]", "[policy]\nmax-rank = 8\n[adapters]", ["policy `max-rank` changed from nothing to `8`"]),
    ],
)  # fmt: skip
def test_what_is_stale_is_told(old, new, told):
    changed = project(PROJECT.replace(old, new, 1))

    assert lock_problems(changed, current()) == told


def test_a_merge_whose_input_was_locked_anew_is_stale():
    lock = current()
    newer = replace(lock.adapters[0], digest=digest(42))

    assert lock_problems(project(), replace(lock, adapters=(newer, lock.adapters[1]))) == [
        "`both` is locked with a different recipe or different inputs"
    ]


def test_a_remote_that_moved_makes_what_came_from_it_stale():
    text = PROJECT + '[remotes.ours]\nurl = "https://new.example"\n'
    old = replace(
        current().adapters[0],
        source=on_hub("https://old.example", "acme/x", "0" * 40, "ours"),
    )
    lock = replace(current(), adapters=(old, current().adapters[1]))

    assert lock_problems(project(text), lock) == [
        "`legal-qa` is locked from https://old.example, but remote `ours` is https://new.example"
    ]
    assert lock_problems(project(), lock) == [
        "`legal-qa` is locked from remote `ours`, which the project does not name"
    ]


def test_a_lock_of_too_many_entries_is_refused_before_it_is_read(tmp_path):
    """200,000 entries, each with something wrong, took half a minute."""
    entry = '[[adapter]]\nkey = "a"\n\n'
    (tmp_path / "adapters.lock").write_text(f'schema = "adapterhub-lock/1"\n\n{entry * 200_000}')
    started = time.process_time()

    with pytest.raises(Malformed, match=f"has 200,000 entries, at most {MOST_ENTRIES:,} are read"):
        read_lock(tmp_path)

    assert time.process_time() - started < 1 * slowness()


def test_a_lock_that_could_not_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(lockfile, "MOST_ENTRIES", 1)
    with pytest.raises(NotAllowed, match="the lock would have 2 entries"):
        write_lock(tmp_path, LOCK)

    assert list(tmp_path.iterdir()) == []

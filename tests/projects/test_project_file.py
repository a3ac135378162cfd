"""`adapters.toml`: what it says as values, what is refused with its line, and edits that leave the rest as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.core.errors import Conflict, Malformed, NotFound
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterName, AdapterSpec, BaseSpec, parse_name
from adapterhub.projects.file import (
    create_project,
    parse_project,
    project_of,
    text_of_project,
    with_adapter,
    without_adapters,
    write_project,
)
from adapterhub.projects.lock.lockfile import wanted_text
from adapterhub.projects.project import find_project, read_project
from adapterhub.projects.values import AdapterRequirement, Policy, Project, ProjectRemote
from adapterhub.weights.recipes.toml import Inner, Leaf

WHOLE = """\
[project]
base = "base-7b"

[remotes.ours]
url = "HTTPS://Adapters.Example.com/"
namespaces = ["acme"]
signatures = "require"
[remotes.published]
path = "./published"

[adapters]
legal-qa = ">=1.2,<2"       # the main one
summarize = { spec = "acme/summarize~=1.0", rank = "-16", remote = "ours" }
brief = "acme/summarize==1.0"
any = "*"
whatever = ""

[groups.eval]
judge = ">=1"

[merges.legal-summary]
method = "svd"
options = { rank = 16 }
inputs = [ { adapter = "legal-qa", weight = 0.7 }, { merge = { method = "cat", inputs = [ { adapter = "brief", weight = 1 } ] }, weight = 0.3 } ]
task = "both"
group = "eval"

[policy]
max-rank = 64
exclude-newer = 2026-01-31
deny-licenses = ["GPL-3.0-only"]
"""


def parsed(text: str):
    return parse_project(text.encode(), Path("/work/project"), "adapters.toml")


def problems(text: str) -> list[str]:
    with pytest.raises(Malformed) as refused:
        parsed(text)
    return [line.strip() for line in refused.value.message.split("\n")[1:]]


def wanted(key: str, spec: str, **more) -> AdapterRequirement:
    return AdapterRequirement(key=parse_name(key), spec=AdapterSpec.parse(spec), **more)


def save_adapter(folder: Path, one: AdapterRequirement) -> Project:
    return write_project(folder, with_adapter(text_of_project(folder), one))


def remove_adapter(folder: Path, *keys: AdapterName) -> Project:
    return write_project(folder, without_adapters(text_of_project(folder), keys))


# ---------------------------------------------------------------- reading
def test_a_project_file_is_read_as_values():
    project = parsed(WHOLE)

    assert project.base == BaseSpec.parse("base-7b")
    assert project.remotes == (
        ProjectRemote(
            name="ours", kind="hub", address="https://adapters.example.com", namespaces=("acme",), signatures="require"
        ),
        ProjectRemote(name="published", kind="directory", address="./published"),
    )
    assert project.adapters == (
        wanted("legal-qa", "legal-qa>=1.2,<2"),
        wanted("summarize", "acme/summarize~=1.0", ranks=RankRange(high=16), remote="ours"),
        wanted("brief", "acme/summarize==1.0"),
        wanted("any", "any"),
        wanted("whatever", "whatever"),
        wanted("judge", "judge>=1", group="eval"),
    )
    [merge] = project.merges
    assert (merge.task, merge.group, merge.step.method, dict(merge.step.options)) == (
        "both",
        "eval",
        "svd",
        {"rank": 16},
    )
    assert merge.step.inputs[0] == Leaf(spec="legal-qa", weight=0.7)
    assert isinstance(merge.step.inputs[1], Inner)
    assert project.policy == Policy(max_rank=64, exclude_newer="2026-01-31", deny_licenses=("GPL-3.0-only",))
    assert project.groups == ("eval",)


def test_an_empty_file_is_a_project_that_wants_nothing():
    project = parsed("")

    assert (project.base, project.requirements, project.policy) == (None, (), Policy())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[adaptors]\nx = ''", "line 1, adaptors: no such key; did you mean `adapters`?"),
        ("[project]\nbsae = 'b'", "line 2, project.bsae: no such key; did you mean `base`?"),
        ("[adapters]\nx = 1", "line 2, adapters.x: expected text or a table, got a whole number"),
        ("[adapters]\nx = '1.2.0'", 'line 2, adapters.x: `1.2.0`: not a version range; write `x = "==1.2.0"`'),
        ("[adapters]\nX = ''", "line 2, adapters.X: `X`: a name holds only a-z, 0-9 and `._-`, not `X`; write `x`"),
        ("[adapters]\nx = { sepc = '>=1' }", "line 2, adapters.x.sepc: no such key; did you mean `spec`?"),
        ("[adapters]\nx = { rank = 0 }", "line 2, adapters.x.rank: a rank is at least 1, got 0"),
        ("[adapters]\nx = { rank = true }", "line 2, adapters.x.rank: expected a whole number, got true or false"),
        ('[adapters]\nx = { rank = "9-8" }', "line 2, adapters.x.rank: no rank is at least 9 and at most 8"),
        ("[adapters]\nx = { remote = 'our' }\n[remotes.ours]\npath='p'", "line 2, adapters.x.remote: no remote `our`; did you mean `ours`?"),
        ("[adapters]\nx = '>=1'\n[groups.eval]\nx = '>=2'", "line 4, groups.eval.x: the name is used twice, here and by adapters.x"),
        ("[remotes.a]", "line 1, remotes.a: expected either `url` (a server) or `path`"),
        ("[remotes.a]\nurl = 'u'\npath = 'p'", "line 1, remotes.a: expected either `url`"),
        ("[remotes.a]\nurl = 'ftp://x'", "line 2, remotes.a.url: `ftp://x` is not the URL of a server"),
        ("[remotes.a]\npath = 'p'\nsignatures = 'maybe'", "line 3, remotes.a.signatures: `maybe`, expected one of require, warn, off"),
        ("[remotes.a]\npath = 'p'\nnamespaces = ['a b']", "remotes.a.namespaces[0]: `a b`:"),
        ("[policy]\nmax-rang = 4", "line 2, policy.max-rang: no such key; did you mean `max-rank`?"),
        ("[policy]\nexclude-newer = 'soon'", "line 2, policy.exclude-newer: expected an age such as `7d`"),
        ("[policy]\nallow-licenses = 'MIT'", "line 2, policy.allow-licenses: expected a list, got text"),
        ("[policy]\nallow-licenses = ['']", "policy.allow-licenses[0]: expected a word"),
        ("[merges.m]\ninputs = [{ adapter = 'x', weight = 1 }]", "line 2, merges.m.inputs: no adapter `x` in this project"),
        ("[merges.m]\ninputs = [{ spec = 'x', weight = 1 }]", "merges.m.inputs[0].spec: no such key"),
        ("[merges.m]\nmethod = 'tise'\ninputs = []", "line 2, merges.m.method: no merge method `tise`; did you mean `ties`?"),
        ("[merges.m]\ninputs = [{ adapter = 'm', weight = 1 }]", "line 1, merges.m: made of itself: m -> m"),
        ("[merges.a]\ninputs=[{adapter='b',weight=1}]\n[merges.b]\ninputs=[{adapter='a',weight=1}]", "made of itself: a -> b -> a"),
        ("[project]\nbase = 'a@b'", "line 2, project.base: `a@b`: more than one `@`"),
        ("[project\n", "not TOML:"),
        ("a." * 600 + "a = 1", "line 1: more than 500 dots"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line_and_the_nearest_name(text, told):
    assert any(problem.startswith(told) or told in problem for problem in problems(text)), problems(text)


def test_every_problem_is_told_at_once():
    told = problems("[adapters]\nX = ''\ny = 3\n[policy]\nmax-rank = 'x'\n[merges.m]\nweight = 3\n")

    assert [re.sub(r":.*", "", line) for line in told] == [
        "line 2, adapters.X",
        "line 3, adapters.y",
        "line 5, policy.max-rank",
        "line 6, merges.m.inputs",
        "line 7, merges.m.weight",
    ]


def test_problems_are_told_in_the_order_of_the_file():
    text = '[policy]\nmax-rank = true\n\n[adapters]\nx = 1\n[groups.eval]\nx = "*"\ny = { spec = "*", rank = 0 }\n'

    assert [one.split(",")[0] for one in problems(text)] == ["line 2", "line 5", "line 8"]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"\xef\xbb\xbf[project]\n", "line 1: begins with a byte order mark"),
        ("[project]\n".encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
        (b"[project]\n<<<<<<< HEAD\n[adapters]\n=======\n>>>>>>> main\n", "line 2: holds both sides of a merge"),
    ],
)
def test_what_is_no_toml_for_a_reason_that_is_hard_to_see_is_named(raw, told):
    with pytest.raises(Malformed) as refused:
        parse_project(raw, Path(), "adapters.toml")

    assert told in refused.value.message


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1.2", "==1.2"),
        ("v1.2", "==1.2"),
        ("^1.2", ">=1.2,<2"),
        ("^0.3.1", ">=0.3.1,<0.4"),
        ("^0.0", ">=0.0,<0.1"),
        ("^2.0rc1", "==2.0rc1"),
        ("1.x", "==1.*"),
        ("1.2.*", "==1.2.*"),
        ("latest", "*"),
    ],
)
def test_ranges_of_other_package_managers_are_refused_with_ours(text, meant):
    assert problems(f'[adapters]\nx = "{text}"\n') == [
        f'line 2, adapters.x: `{text}`: not a version range; write `x = "{meant}"`'
    ]
    assert parsed(f'[adapters]\nx = "{meant}"\n').adapters[0].key == "x"


def test_a_project_is_found_upwards_from_any_folder_in_it(tmp_path):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    create_project(tmp_path)

    assert find_project(inside) == tmp_path
    assert find_project(tmp_path) == tmp_path


def test_a_folder_without_a_project_file_is_none(tmp_path):
    with pytest.raises(NotFound) as refused:
        read_project(tmp_path)

    assert refused.value.hint == "`adapt init` creates a project in this folder"


# ---------------------------------------------------------------- editing
def test_saving_keeps_comments_order_and_spaces(tmp_path):
    (tmp_path / "adapters.toml").write_text(WHOLE)

    save_adapter(tmp_path, wanted("legal-qa", "legal-qa>=2"))
    save_adapter(tmp_path, wanted("new", "acme/new>=1", ranks=RankRange(low=4)))

    expected = WHOLE.replace('legal-qa = ">=1.2,<2" ', 'legal-qa = ">=2" ').replace(
        'whatever = ""\n', 'whatever = ""\nnew = {spec = "acme/new>=1", rank = "4-"}\n'
    )
    assert (tmp_path / "adapters.toml").read_text() == expected


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("[adapters]\n", '\n# our server\n[remotes.ours]\nurl = "https://a.example.com"\n'),
        ('[adapters]\nold = "*"  # keep\n', '# our server\n[remotes.ours]\nurl = "https://a.example.com"\n'),
        ('[adapters]\n# such as\n# a = "*"\n', "\n\n# maximum\n[policy]\nmax-rank = 4\n"),
        ("[adapters]\n# such as\n", "[policy]\nmax-rank = 4\n"),
        ('[policy]\n\n[adapters]\nold.spec = "*"\n', ""),
        ("# only\n[adapters]\n", ""),
    ],
)
def test_a_new_adapter_stands_before_what_belongs_to_the_next_table(tmp_path, before, behind, line_end):
    (tmp_path / "adapters.toml").write_bytes((before + behind).replace("\n", line_end).encode())

    save_adapter(tmp_path, wanted("new", "new>=1"))

    expected = f'{before}new = ">=1"\n{behind}'.replace("\n", line_end).encode()
    assert (tmp_path / "adapters.toml").read_bytes() == expected


def test_an_adapter_moves_between_groups_and_leaves_no_second_entry(tmp_path):
    (tmp_path / "adapters.toml").write_text(WHOLE)

    project = save_adapter(tmp_path, wanted("judge", "judge>=2"))
    moved = save_adapter(tmp_path, wanted("any", "any", group="extra"))

    assert next(w for w in project.adapters if w.key == "judge").group is None
    assert next(w for w in moved.adapters if w.key == "any").group == "extra"
    assert [w.key for w in moved.adapters].count("any") == 1


def test_what_a_merge_is_made_of_is_not_taken_out_without_it(tmp_path):
    (tmp_path / "adapters.toml").write_text(WHOLE)

    with pytest.raises(Conflict, match="`brief` is part of `legal-summary`"):
        remove_adapter(tmp_path, parse_name("brief"))
    with pytest.raises(NotFound, match="no adapter `breif` in this project; did you mean `brief`"):
        remove_adapter(tmp_path, parse_name("breif"))
    assert (tmp_path / "adapters.toml").read_text() == WHOLE

    project = remove_adapter(tmp_path, parse_name("brief"), parse_name("legal-summary"))
    assert [w.key for w in project.requirements] == ["legal-qa", "summarize", "any", "whatever", "judge"]


def test_a_merge_keeps_its_name(tmp_path):
    (tmp_path / "adapters.toml").write_text(WHOLE)

    with pytest.raises(Conflict, match="`legal-summary` is a merge of this project"):
        save_adapter(tmp_path, wanted("legal-summary", "legal-summary"))


def test_a_project_is_not_made_twice(tmp_path):
    project = create_project(tmp_path, BaseSpec.parse("./models/base-7b"))

    assert project == read_project(tmp_path)
    assert str(project.base) == "./models/base-7b"
    with pytest.raises(Conflict, match="It was not changed"):
        create_project(tmp_path)


KEYS = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
SPECIFIERS = st.sampled_from(["", "==1.0", ">=1.2,<2", "~=1.4", ">=1,!=1.5", "==1.*"])
RANKS = st.none() | st.integers(1, 64)


NAMES = KEYS.filter(
    lambda name: not re.fullmatch(r"v\d+", name)
)  # which a project file reads as a version, and refuses


@given(key=KEYS, name=NAMES, namespace=st.none() | KEYS, specifiers=SPECIFIERS, max_rank=RANKS, group=st.none() | KEYS)
def test_what_is_saved_is_what_is_read(key, name, namespace, specifiers, max_rank, group):
    full = f"{namespace}/{name}" if namespace else name
    one = wanted(key, f"{full}{specifiers}", ranks=RankRange(high=max_rank), group=group)

    project = project_of(with_adapter("[adapters]\nother-one = '*'\n", one), Path())

    assert [w for w in project.adapters if w.key == one.key] == [one]
    assert [w.key for w in project.adapters] == ["other-one", key]


def test_a_requirement_is_one_text():
    one = wanted("summarize", "acme/summarize~=1.0", ranks=RankRange(low=4, high=16), remote="ours")

    assert wanted_text(one) == "acme/summarize~=1.0 rank=4-16 remote=ours"

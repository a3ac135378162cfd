"""What a project asks for that cannot be had together: explained with what stands against what, and with a way out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import digest_of
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec, BaseSpec, parse_name
from adapterhub.distribution.choosing import candidates_of
from adapterhub.formats.release import Release
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from adapterhub.projects.lock.conflicts import (
    bases_asked_for,
    built_for_several_bases,
    conflict,
    conflicts_in,
    in_two_remotes,
    kept_out,
    moved_base,
    other_remotes_notice,
    rank_over_maximum,
    yanked_notice,
)
from adapterhub.projects.values import AdapterRequirement, LockedAdapter, LockedBase, LockedSource, Policy, Project
from tests.distribution.test_resolve import build
from tests.support.command_line import Adapt, Done
from tests.support.tiny import make_adapter, make_base

NOW, DAY = parse_time("2026-06-15T12:00:00Z"), 86_400.0


def wanted(text: str, *, remote: str | None = None, **bounds) -> AdapterRequirement:
    spec = AdapterSpec.parse(text)
    return AdapterRequirement(key=parse_name(spec.name), spec=spec, ranks=RankRange(**bounds), remote=remote)


def project(*adapters: AdapterRequirement, base: str | None = None, **policy) -> Project:
    return Project(
        folder=Path("/work"), base=BaseSpec.parse(base) if base else None, adapters=adapters, policy=Policy(**policy)
    )


# ---------------------------------------------------------------- bases
def test_a_spec_that_names_another_base_than_the_project_is_told_with_both_ways_out():
    found = bases_asked_for(project(wanted("poem"), wanted("acme/judge@llama-13b>=1"), base="base-7b"))

    assert found is not None
    assert found.reasons == (("project", "is for base `base-7b`"), ("judge", "requires base `llama-13b`"))
    assert "`adapt install --save 'acme/judge>=1'`" in found.hint
    assert "`adapt init DIR --base llama-13b`" in found.hint
    bare = bases_asked_for(project(wanted("poem@base-7b"), wanted("judge@llama-13b"), wanted("other@base-7b")))
    assert bare is not None
    assert [key for key, _ in bare.reasons] == ["poem", "judge", "other"]


def test_the_base_of_the_project_may_be_named_again_and_by_another_of_its_names():
    one_base = project(wanted("poem@base-7b"), wanted("judge@org/model"), base="base-7b")

    assert bases_asked_for(project(wanted("poem@base-7b"), wanted("judge"), base="base-7b")) is None
    assert bases_asked_for(one_base) is not None
    assert bases_asked_for(one_base, lambda _: "sha256:" + "a" * 64) is None


def locked(key: str, base: str | None, version: str = "1.0.0") -> LockedAdapter:
    digest = digest_of(key.encode())
    return LockedAdapter(
        key=parse_name(key), wanted=key, name=key, version=version, digest=digest,
        base=digest_of(base.encode()) if base else None, rank=8, source=LockedSource(), files=(),
    )  # fmt: skip


def test_builds_for_different_bases_are_told_by_base_with_the_most_common_as_a_way_out():
    adapters = [locked("judge", "13b"), locked("poem", "7b"), locked("legal", "7b"), locked("plain", None)]
    names = {digest_of(b"7b"): "base-7b", digest_of(b"13b"): ""}

    found = built_for_several_bases(adapters, names.__getitem__)

    assert found is not None
    assert found.reasons == (
        ("judge", f"1.0.0 is made for base `{digest_of(b'13b')[:19]}`"),
        ("legal", "1.0.0 is made for base `base-7b`"),
        ("poem", "1.0.0 is made for base `base-7b`"),
    )
    assert found.hint.startswith('`base = "base-7b"` under `[project]`')
    assert found == built_for_several_bases(adapters[::-1], names.__getitem__)
    assert built_for_several_bases(adapters[1:]) is None


# ---------------------------------------------------------------- a base that moved
def locked_base(record: BaseRecord, spec: str = "base-7b") -> LockedBase:
    print_of = record.fingerprint
    return LockedBase(spec=spec, weights=print_of.weights, tensors=print_of.tensors, structure=print_of.structure)


@pytest.fixture
def at(tmp_path, library: Library):
    """A base as it lies in a folder, not registered."""
    return lambda name, **made: library.bases.look(make_base(tmp_path / name, **made))


def test_other_weights_under_the_locked_name_are_told_with_both_hashes_and_the_commands(at):
    before, now = at("before"), at("now", seed=1)

    found = moved_base(locked_base(before), now)

    assert found is not None
    assert found.summary == "the weights of base `base-7b` changed since they were locked"
    (_, there), (_, here) = found.reasons
    assert there == before.fingerprint.weights
    assert here.startswith(f"{now.fingerprint.weights}: other values in the same shapes, in ")
    assert "`adapt lock --upgrade`" in found.hint
    assert "`adapt base remove base-7b` and `adapt base add FOLDER --as base-7b`" in found.hint


def test_another_model_under_the_name_is_told_as_such_and_a_folder_has_no_alias_to_remove(at):
    found = moved_base(locked_base(at("before"), "./base"), at("now", width=16))

    assert found is not None
    assert "tensors of other names or shapes" in found.reasons[1][1]
    assert "base remove" not in found.hint


def test_the_locked_weights_are_no_conflict_nor_is_a_lock_that_knows_none(at):
    here = at("here")

    assert moved_base(locked_base(here), here) is None
    assert moved_base(replace(locked_base(here), weights=digest_of(b"renamed")), here) is None  # the same tensors
    assert moved_base(LockedBase(spec="org/model"), here) is None


def test_another_precision_is_told_from_other_weights_by_what_the_builds_declare(at):
    exact, half = at("exact"), at("half", dtype="f2")

    assert moved_base(locked_base(exact), half) is not None
    assert moved_base(locked_base(exact), half, [at("other", seed=1).fingerprint, exact.fingerprint]) is None


# ---------------------------------------------------------------- ranks and the rest of the policy
@pytest.mark.parametrize(
    ("bounds", "asks"),
    [({"low": 128, "high": 128}, "requires rank 128"), ({"low": 96}, "requires a rank of at least 96")],
)
def test_a_rank_over_the_maximum_of_the_project_is_told_with_a_command_and_a_setting(bounds, asks):
    found = rank_over_maximum(Policy(max_rank=64), wanted("acme/judge", **bounds))

    assert found is not None
    assert found.reasons == (("judge", asks), ("policy", "`max-rank` is 64"))
    assert "`adapt install --save acme/judge --rank -64`" in found.hint
    assert f"`max-rank = {bounds['low']}`" in found.hint


def test_ranks_that_the_project_takes_are_no_conflict():
    assert rank_over_maximum(Policy(max_rank=64), wanted("judge", low=64, high=256)) is None
    assert rank_over_maximum(Policy(max_rank=64), wanted("judge", high=256)) is None
    assert rank_over_maximum(Policy(), wanted("judge", low=4096, high=4096)) is None


@pytest.mark.parametrize(
    ("policy", "offer", "hint"),
    [
        (
            {"max_rank": 64},
            {"rank": 128},
            "`max-rank = 128` under `[policy]` allows it; `adapt resize poem --rank 64`",
        ),
        ({"max_rank": 64}, {"rank": None}, "its rank is not recorded"),
        (
            {"exclude_newer": "7d"},
            {"published_at": NOW - DAY},
            "the oldest release that fits is allowed from 2026-06-21T12:00:00Z",
        ),
        (
            {"exclude_newer": "2026-01-01"},
            {"published_at": NOW - DAY},
            '`exclude-newer = "2026-06-14T12:00:01Z"` under `[policy]`',
        ),
        ({"exclude_newer": "7d"}, {}, "remove `exclude-newer` from `[policy]`"),
        ({"deny_licenses": ("MIT",)}, {"license": "MIT"}, "remove `deny-licenses` from `[policy]`"),
        ({"allow_methods": ("dora",)}, {}, "remove `allow-methods` from `[policy]`"),
        ({"allow_namespaces": ("eve",)}, {}, "remove `allow-namespaces` from `[policy]`"),
        ({"allow_namespaces": ("eve",), "max_rank": 1}, {}, ""),  # no single rule does
    ],
)
def test_the_hint_names_the_one_rule_that_keeps_an_adapter_out(policy, offer, hint):
    said = kept_out(Policy(**policy), wanted("acme/poem>=1"), [build("1.0.0", **offer), build("0.9.0")], NOW)

    assert said.startswith(hint)
    assert bool(said) == bool(hint)


def test_what_the_hint_about_a_date_offers_lets_the_release_in():
    from adapterhub.projects.file import refusal

    one = build(published_at=NOW - DAY + 0.75)
    hint = kept_out(Policy(exclude_newer="2026-01-01"), wanted("acme/poem"), [one], NOW)

    offered = hint.split('"')[1]
    assert refusal(Policy(exclude_newer=offered), one, NOW) is None


# ---------------------------------------------------------------- remotes
def test_other_bytes_for_one_release_in_two_remotes_are_told_with_what_settles_it():
    ours, theirs = build("1.2.0", published_at=NOW), build("1.2.0", digest="sha256:" + "e" * 64)

    found = in_two_remotes(wanted("acme/poem>=1"), {"theirs": [theirs, build("1.0.0")], "ours": [build("1.0.0"), ours]})

    assert found is not None
    assert found.reasons == (
        ("poem in `ours`", f"1.2.0 rank 8 {ours.digest[:19]}, dated 2026-06-15T12:00:00Z"),
        ("poem in `theirs`", f"1.2.0 rank 8 {theirs.digest[:19]}"),
    )
    assert '`poem = { spec = "acme/poem>=1", remote = "ours" }`' in found.hint


def test_a_mirror_another_rank_a_lagging_remote_and_a_named_one_are_no_conflict():
    new, other_rank, old = build("1.2.0"), build("1.2.0", rank=16), build("1.0.0")
    twice_in_one = {"ours": [new, build("1.2.0", digest="sha256:" + "e" * 64)], "mirror": []}

    assert in_two_remotes(wanted("acme/poem"), {"ours": [new], "mirror": [new, other_rank, old]}) is None
    assert in_two_remotes(wanted("acme/poem"), twice_in_one) is None
    torn = {"ours": [new], "theirs": [build("1.2.0", digest="sha256:" + "e" * 64)]}
    assert in_two_remotes(wanted("acme/poem", remote="ours"), torn) is None
    assert in_two_remotes(wanted("bob/poem"), torn) is None


def test_builds_for_a_base_and_for_its_copy_of_another_precision_are_two_releases(tmp_path, add, library):
    half = make_base(tmp_path / "half", dtype="f2")
    other = Library(tmp_path / "other")
    one = add("poem", seed=1).build
    made = make_adapter(tmp_path / "made-for-half", seed=2)
    about = Description(name=parse_name("poem"), version=one.manifest.version)
    copy_of = other.add(made, about, base=other.bases.add(half, "half")).build
    releases = [Release(manifest=each.manifest, namespace=None, origin="there") for each in (one, copy_of)]

    both = candidates_of(library, releases, None, "remote")

    assert len({each.base_label for each in both}) == 1
    assert in_two_remotes(wanted("poem"), {"ours": both, "mirror": both}) is None
    torn = replace(both[1], digest="sha256:" + "e" * 64)
    assert in_two_remotes(wanted("poem"), {"ours": both, "theirs": [both[0], torn]}) is not None


def test_a_remote_that_would_give_another_build_is_noticed_with_how_to_take_it():
    taken, newer = build("1.0.0"), build("1.2.0")

    said = other_remotes_notice(wanted("acme/poem"), ("ours", taken), {"mirror": taken, "theirs": newer})

    assert said is not None
    assert f"`poem` is 1.0.0 rank 8 {taken.digest[:19]} of remote `ours`, which stands first" in said
    assert f"remote `theirs` has 1.2.0 rank 8 {newer.digest[:19]}" in said
    assert '`poem = { spec = "acme/poem", remote = "theirs" }`' in said
    assert other_remotes_notice(wanted("acme/poem"), ("ours", taken), {"mirror": taken}) is None
    assert other_remotes_notice(wanted("acme/poem", remote="ours"), ("ours", taken), {"theirs": newer}) is None


# ---------------------------------------------------------------- together
def test_every_conflict_of_a_project_is_told_in_one_refusal():
    asked = project(wanted("judge@llama-13b", low=128, high=128), wanted("poem", low=96), base="base-7b", max_rank=64)

    refusal = conflict(conflicts_in(asked))

    assert refusal.exit_code == 11
    assert refusal.summary.split("; ") == [
        "a project has one base, but some of its adapters require another",
        "an adapter requires a larger rank than the project allows",
    ]
    assert str(refusal).splitlines()[1:] == [
        "  project  is for base `base-7b`",
        "  judge  requires base `llama-13b`",
        "  judge  requires rank 128",
        "  policy  `max-rank` is 64",
        "  poem  requires a rank of at least 96",
        "  policy  `max-rank` is 64",
    ]
    assert refusal.hint.count("adapt install --save") == 3
    assert conflicts_in(project(wanted("poem"), base="base-7b", max_rank=64)) == []


# ---------------------------------------------------------------- yanked
def test_a_yanked_build_of_a_lock_is_told_with_the_reason_and_what_chooses_another():
    said = yanked_notice("poem", "acme/poem", "1.2.0", "trained on leaked labels")

    assert said == (
        "`acme/poem==1.2.0` was yanked: trained on leaked labels; it is locked, so it is installed anyway. "
        "`adapt lock --upgrade poem` chooses another"
    )
    assert "(`brief` here) was yanked: no reason given" in yanked_notice("brief", "acme/poem", "1.2.0", "")
    assert yanked_notice("poem", "acme/poem", "1.2.0", "\x1b[31m").isprintable()


# ---------------------------------------------------------------- as `adapt lock` says it
@pytest.fixture
def publish(tmp_path, add):
    """Publish a build to a directory under the project's folder."""

    def publish(place: str, name: str, *, into: str = "author", **made) -> Path:
        author = Library(tmp_path / f"{into}-of-{place}")
        manifest = add(name, into=author, **made).build.manifest
        copy(Release(manifest=manifest, namespace=None, origin="there"), author, PublishedDirectory(tmp_path / place))
        return tmp_path / place / name / f"{manifest.version}-r{manifest.rank}" / "adapterhub.json"

    return publish


@pytest.fixture
def adapt(tmp_path, base) -> Adapt:
    return Adapt(tmp_path)


def lock(adapt: Adapt, text: str, *options: str) -> Done:
    (adapt.folder / "adapters.toml").write_text(text)
    return adapt("lock", *options)


TWO_REMOTES = """
[project]
base = "base-7b"
[remotes.ours]
path = "./ours"
[remotes.theirs]
path = "./theirs"
"""


def test_lock_refuses_a_release_of_which_two_remotes_have_other_bytes_until_one_is_named(adapt, publish):
    publish("ours", "poem")
    publish("theirs", "poem", seed=2)

    refused = lock(adapt, f'{TWO_REMOTES}[adapters]\npoem = ""\n')
    offered = re.search(r"`(poem = .*?)`", refused.stderr)
    settled = lock(adapt, f"{TWO_REMOTES}[adapters]\n{offered[1]}\n" if offered else "")

    assert refused.exit_code == 11, refused.stderr
    assert "two remotes of this project have different bytes for the same release of `poem`" in refused.stderr
    assert settled.exit_code == 0, settled.stderr


def test_lock_takes_the_remote_that_stands_first_and_says_what_the_other_has(adapt, publish):
    publish("ours", "poem")
    publish("theirs", "poem", version="2.0.0", seed=2)

    done = lock(adapt, f'{TWO_REMOTES}[adapters]\npoem = ">=1"\n')

    assert done.exit_code == 0, done.stderr
    assert "of remote `ours`, which stands first; remote `theirs` has 2.0.0 rank 4" in done.stderr

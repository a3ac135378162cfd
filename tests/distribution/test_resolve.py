"""Which build a spec means, and the reasons against all others."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    AmbiguousSpec,
    NoCompatibleRelease,
    UsageProblem,
)
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.resolve import Candidate, Resolution, resolve
from adapterhub.formats.base.fingerprint import BaseVerdict

SAME, OTHER_PRECISION = BaseVerdict.SAME_WEIGHTS, BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION
LOW, HIGH = "sha256:" + "0" * 64, "sha256:" + "f" * 64
SHAPES, DIFFERENT, UNKNOWN = BaseVerdict.SAME_SHAPES, BaseVerdict.DIFFERENT, BaseVerdict.UNKNOWN


def build(version="1.0.0", verdict=SAME, rank=8, **changes) -> Candidate:
    """A candidate for the base `base-7b`; equal arguments give an equal digest."""
    facts = {
        "namespace": "acme", "name": "poem", "version": version, "verdict": verdict, "rank": rank,
        "differences": (), "base_label": "base-7b", "method": "LORA", "yanked": None, "size_bytes": 100,
        "source": "hub",
    } | changes  # fmt: skip
    identity = repr([facts[key] for key in ("namespace", "name", "version", "rank", "base_label")])
    return Candidate(**{"digest": digest_of(identity.encode())} | facts)


def ask(text: str, *candidates: Candidate, base_given: bool = True, **options) -> Resolution:
    ranks = RankRange.of(options.pop("rank", None))
    return resolve(AdapterSpec.parse(text), candidates, base_given=base_given, ranks=ranks, **options)


# ---------------------------------------------------------------- versions


def test_the_newest_version_is_taken_in_the_order_of_pep_440_not_of_text():
    resolution = ask("acme/poem@base-7b", build("1.9.0"), build("1.10.0"), build("1.2.0"))

    assert resolution.chosen == build("1.10.0")
    assert resolution.warnings == ()
    assert resolution.refusals == ()


def test_a_version_outside_the_range_is_refused_with_the_range():
    resolution = ask("acme/poem>=1.2,<2", build("1.0.0"), build("1.5.0"), build("2.0.0"))

    assert resolution.chosen == build("1.5.0")
    assert resolution.refusals == (
        ("2.0.0", "version 2.0.0 is outside >=1.2,<2"),
        ("1.0.0", "version 1.0.0 is outside >=1.2,<2"),
    )


def test_a_prerelease_is_passed_over_while_a_final_release_fits():
    resolution = ask("acme/poem", build("1.0.0"), build("2.0.0rc1"))

    assert resolution.chosen == build("1.0.0")
    assert resolution.refusals == (("2.0.0rc1", "pre-release, `==2.0.0rc1` asks for it"),)


@pytest.mark.parametrize("text", ["acme/poem>=2.0.0rc1", "acme/poem==2.0.0rc1", "acme/poem>=1.0.0.dev0"])
def test_a_prerelease_is_taken_without_a_word_when_asked_for(text):
    resolution = ask(text, build("1.0.0"), build("2.0.0rc1"))

    assert resolution.chosen == build("2.0.0rc1")
    assert resolution.warnings == ()


def test_a_prerelease_is_taken_with_a_warning_when_nothing_else_fits():
    resolution = ask("acme/poem", build("1.0.0", DIFFERENT), build("2.0.0rc1"))

    assert resolution.chosen == build("2.0.0rc1")
    assert resolution.warnings == ("`acme/poem==2.0.0rc1` is a pre-release; no final release fits",)


def test_a_yanked_release_is_passed_over():
    yanked = build("1.1.0", yanked="trained on leaked labels")

    resolution = ask("acme/poem>=1", build("1.0.0"), yanked)

    assert resolution.chosen == build("1.0.0")
    assert resolution.refusals == (("1.1.0", "yanked: trained on leaked labels"),)


def test_a_yank_without_a_reason_is_a_yank():
    resolution = ask("acme/poem", build("1.0.0"), build("1.1.0", yanked=""))

    assert resolution.chosen == build("1.0.0")
    assert resolution.refusals == (("1.1.0", "yanked: no reason given"),)


@pytest.mark.parametrize("pin", ["==1.1.0", "#" + build("1.1.0").digest[:15]])
def test_a_pinned_yanked_release_is_taken_with_a_warning(pin):
    yanked = build("1.1.0", yanked="trained on leaked labels")

    resolution = ask("acme/poem" + pin, build("1.0.0"), yanked)

    assert resolution.chosen == yanked
    assert resolution.warnings == ("`acme/poem==1.1.0` is yanked: trained on leaked labels",)


def test_a_wildcard_does_not_pin_a_yanked_release():
    with pytest.raises(NoCompatibleRelease, match="yanked: leaked"):
        ask("acme/poem==1.1.*", build("1.1.0", yanked="leaked"))


def test_of_builds_of_a_pinned_version_the_one_not_yanked_is_taken():
    resolution = ask("acme/poem==1.0", build(rank=16, yanked="overfitted"), build(rank=8))

    assert resolution.chosen == build(rank=8)
    assert resolution.refusals == (("1.0.0 rank 16", "yanked: overfitted"),)


def test_a_yank_that_one_place_knows_of_holds_for_the_copy_in_another():
    here, there = build("1.1.0", source="a folder"), build("1.1.0", source="hub", yanked="leaked")

    resolution = ask("acme/poem", here, there, build("1.0.0"))

    assert resolution.chosen == build("1.0.0")
    assert resolution.refusals == (("1.1.0", "yanked: leaked"),)


def test_a_base_that_one_place_knows_holds_for_the_copy_in_another():
    here, there = build(source="z", verdict=SAME), build(source="hub", verdict=UNKNOWN)

    resolution = ask("acme/poem", there, here)

    assert resolution.chosen == here
    assert resolution.warnings == ()


def test_of_copies_in_two_places_the_same_one_is_taken_in_either_order():
    copies = [build(source="hub"), build(source="a folder")]

    assert ask("acme/poem", *copies).chosen == ask("acme/poem", *reversed(copies)).chosen == copies[1]


def test_snapshots_without_an_order_are_told():
    one, other = build("0+aaaaaaaaaaaa"), build("0+bbbbbbbbbbbb")

    resolution = ask("acme/poem", one, other)

    assert resolution.chosen == other
    assert [w for w in resolution.warnings if "no order" in w]
    assert ask("acme/poem==0+aaaaaaaaaaaa", one, other).warnings == ()


def test_a_version_that_is_none_is_refused_and_not_a_crash():
    resolution = ask("acme/poem", build("latest"), build("1.0.0"))

    assert resolution.chosen == build("1.0.0")
    assert resolution.refusals[0][0] == "latest"
    assert "not a version" in resolution.refusals[0][1]


# ---------------------------------------------------------------- digests


def test_a_digest_prefix_means_exactly_that_build():
    old = build("1.0.0")

    resolution = ask(f"acme/poem#{old.digest[:15]}", build("2.0.0"), old)

    new = build("2.0.0").digest
    assert resolution.chosen == old
    assert resolution.refusals == (("2.0.0", f"digest {new[:19]}…, {old.digest[:15]} asked"),)


def test_a_digest_prefix_that_two_builds_share_is_ambiguous():
    one = build("1.0.0", digest="sha256:" + "a" * 64)
    other = build("2.0.0", digest="sha256:" + "a" * 10 + "b" * 54)

    with pytest.raises(AmbiguousSpec) as refusal:
        ask("acme/poem#sha256:aaaaaaaa", one, other)

    assert {spec for spec, _ in refusal.value.choices} == {f"acme/poem#{one.digest}", f"acme/poem#{other.digest}"}


# ---------------------------------------------------------------- bases


def test_the_refusal_reads_as_the_style_guide_shows():
    other = build("1.2.0", DIFFERENT, differences=("hidden_size 2048, this base has 1024",))
    yanked = build("1.1.0", yanked="trained on leaked labels")

    with pytest.raises(NoCompatibleRelease) as refusal:
        ask("acme/poem@./llama-tiny", yanked, other)

    assert str(refusal.value).splitlines() == [
        "no release of `acme/poem` fits base `./llama-tiny`",
        "  1.2.0  made for another base: hidden_size 2048, this base has 1024",
        "  1.1.0  yanked: trained on leaked labels",
    ]
    assert refusal.value.hint == "`adapt search --base ./llama-tiny` lists adapters that fit"
    assert refusal.value.exit_code == 11


def test_a_hint_with_a_folder_that_needs_quotes_works_as_typed():
    with pytest.raises(NoCompatibleRelease) as refusal:
        ask("acme/poem@./my llama", build(verdict=DIFFERENT))

    assert "`adapt search --base './my llama'`" in refusal.value.hint


def test_a_base_of_the_same_shapes_is_refused_and_the_override_named():
    with pytest.raises(NoCompatibleRelease) as refusal:
        ask("acme/poem", build(verdict=SHAPES, differences=("values of `norm` differ",)))

    ((label, reason),) = refusal.value.refusals
    assert label == "1.0.0"
    assert reason.startswith("made for another base: values of `norm` differ")
    assert "--allow-base-mismatch" in reason


def test_a_base_of_the_same_shapes_is_taken_with_a_warning_when_allowed():
    mismatched = build(verdict=SHAPES, differences=("values of `norm` differ",))

    resolution = ask("acme/poem", mismatched, allow_base_mismatch=True)

    assert resolution.chosen == mismatched
    assert "made for another base: values of `norm` differ" in resolution.warnings[0]


def test_an_allowed_mismatch_is_a_last_resort():
    resolution = ask("acme/poem", build("2.0.0", SHAPES), build("1.0.0"), allow_base_mismatch=True)

    assert resolution.chosen == build("1.0.0")
    assert resolution.refusals == (("2.0.0", "made for another base: `base-7b`; another build fits"),)


def test_a_base_of_other_shapes_is_refused_even_when_mismatches_are_allowed():
    with pytest.raises(NoCompatibleRelease, match="made for another base: `base-13b`"):
        ask("acme/poem", build(verdict=DIFFERENT, base_label="base-13b"), allow_base_mismatch=True)


def test_many_differences_are_cut_short():
    told = tuple(f"difference {n}" for n in range(7))

    with pytest.raises(NoCompatibleRelease, match="difference 2; and 4 more"):
        ask("acme/poem", build(verdict=DIFFERENT, differences=told))


@pytest.mark.parametrize(("label", "told"), [("org/model", "only the name `org/model`"), ("", "so nothing proves")])
def test_an_unknown_base_is_taken_with_a_warning(label, told):
    undeclared = build(verdict=UNKNOWN, base_label=label)

    resolution = ask("acme/poem", undeclared)

    assert resolution.chosen == undeclared
    assert len(resolution.warnings) == 1
    assert "`acme/poem==1.0.0` declares no base fingerprint" in resolution.warnings[0]
    assert told in resolution.warnings[0]


def test_another_precision_is_said_once():
    resolution = ask("acme/poem", build(verdict=OTHER_PRECISION, differences=("bf16 there, f16 here",)))

    assert resolution.warnings == (
        "`acme/poem==1.0.0` was made for the same weights in a different precision: bf16 there, f16 here",
    )


def test_without_a_base_one_that_all_builds_share_is_taken():
    resolution = ask("acme/poem", build("1.0.0", UNKNOWN), build("1.1.0", UNKNOWN), base_given=False)

    assert resolution.chosen == build("1.1.0", UNKNOWN)
    assert resolution.warnings == ()


def test_without_a_base_the_verdicts_are_not_looked_at():
    builds = [build(verdict=SAME, rank=8), build(verdict=SHAPES, rank=16), build("0.9", DIFFERENT)]

    resolution = ask("acme/poem", *builds, base_given=False)

    assert resolution.chosen == builds[1]
    assert resolution.warnings == ()
    assert resolution.refusals == ()


def test_without_a_base_several_are_listed_with_what_to_type():
    builds = [
        build("1.0.0", base_label="org/model"),
        build("1.1.0", base_label="base-7b", rank=16),
        build("1.2.0", base_label="base-7b", yanked="leaked"),
        build("0.9.0", base_label="base-13b"),
    ]

    with pytest.raises(AmbiguousSpec) as refusal:
        ask("acme/poem>=1", *builds, base_given=False)

    assert refusal.value.choices == (
        ("acme/poem@base-7b>=1", "newest 1.1.0, rank 16"),
        ("acme/poem@org/model>=1", "newest 1.0.0, rank 8"),
    )
    assert refusal.value.exit_code == 2


def test_without_a_base_a_build_that_declares_none_is_offered_by_digest():
    undeclared = build("1.0.0", UNKNOWN, base_label="")

    with pytest.raises(AmbiguousSpec) as refusal:
        ask("acme/poem", undeclared, build("1.1.0"), base_given=False)

    by_digest, by_base = (spec for spec, _ in refusal.value.choices)
    assert by_base == "acme/poem@base-7b"
    resolution = ask(by_digest, undeclared, build("1.1.0"), base_given=False)
    assert resolution.chosen == undeclared
    assert "declares no base" in resolution.warnings[0]


def test_without_a_base_the_ranks_and_versions_may_leave_only_one():
    builds = [build(base_label="org/model", rank=64), build(base_label="base-7b", rank=8)]

    assert ask("acme/poem", *builds, base_given=False, rank="-16").chosen == builds[1]


# ---------------------------------------------------------------- ranks


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({}, 32),
        ({"rank": 16}, 16),
        ({"rank": "-16"}, 16),
        ({"rank": "-15"}, 8),
        ({"rank": "9-31"}, 16),
        ({"rank": "16-"}, 32),
        ({"rank": 8}, 8),
    ],
)
def test_among_builds_of_one_version_the_highest_rank_asked_for_is_taken(options, rank):
    resolution = ask("acme/poem", build(rank=8), build(rank=16), build(rank=32), **options)

    assert rank == resolution.chosen.rank


def test_a_newer_version_outranks_a_higher_rank():
    assert ask("acme/poem", build("1.0", rank=64), build("1.1", rank=8)).chosen == build("1.1", rank=8)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": "-16"}, "rank 32, at most 16 asked"),
        ({"rank": "64-"}, "rank 32, at least 64 asked"),
        ({"rank": 8}, "rank 32, 8 asked"),
        ({"rank": "2-8"}, "rank 32, at least 2 and at most 8 asked"),
    ],
)
def test_a_rank_that_was_not_asked_for_is_refused_with_both(options, reason):
    with pytest.raises(NoCompatibleRelease) as refusal:
        ask("acme/poem", build(rank=32), **options)

    assert refusal.value.refusals == (("1.0.0", reason),)


def test_a_rank_that_is_not_recorded_is_refused_only_when_one_is_asked_for():
    unrecorded = build(rank=None)

    assert ask("acme/poem", unrecorded).chosen == unrecorded
    with pytest.raises(NoCompatibleRelease, match="rank not recorded, at most 16 asked"):
        ask("acme/poem", unrecorded, rank="-16")


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"rank": "--1"}, {"rank": "9-8"}, {"rank": "4-0"}, {"rank": "x"}, {"rank": "-"}]
)
def test_ranks_that_no_build_can_have_are_a_usage_problem(options):
    with pytest.raises(UsageProblem, match="rank"):
        ask("acme/poem", build(), **options)


# ---------------------------------------------------------------- builds of one version


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (build(verdict=SAME, digest=HIGH), build(verdict=OTHER_PRECISION, digest=LOW)),
        (build(verdict=SAME, digest=HIGH), build(verdict=UNKNOWN, digest=LOW)),
        (build(verdict=OTHER_PRECISION, rank=8), build(verdict=UNKNOWN, base_label="b", rank=64)),
        (build(verdict=OTHER_PRECISION, rank=16), build(verdict=SAME, base_label="b", rank=8)),
    ],
)
def test_a_proven_base_comes_before_rank_and_rank_before_precision(better, worse):
    assert ask("acme/poem", worse, better).chosen == better
    assert ask("acme/poem", better, worse).chosen == better


def test_builds_that_differ_in_nothing_asked_for_are_told_apart_by_digest():
    builds = [build(digest="sha256:" + digit * 64, base_label=digit) for digit in "ba"]

    assert ask("acme/poem", *builds).chosen == builds[1]


def test_each_refused_build_has_its_own_label():
    builds = [
        build("1.0.0", DIFFERENT, rank=8),
        build("1.1.0", DIFFERENT, rank=8),
        build("1.1.0", DIFFERENT, rank=16, base_label="base-7b"),
        build("1.1.0", DIFFERENT, rank=16, base_label="base-13b"),
    ]

    with pytest.raises(NoCompatibleRelease) as refusal:
        ask("acme/poem", *builds)

    labels = [label for label, _ in refusal.value.refusals]
    assert sorted(labels) == ["1.0.0", "1.1.0 rank 16 for base-13b", "1.1.0 rank 16 for base-7b", "1.1.0 rank 8"]
    assert labels[-2:] == ["1.1.0 rank 8", "1.0.0"]


# ---------------------------------------------------------------- names


def test_a_name_that_nothing_has_is_not_found():
    with pytest.raises(AdapterNotFound) as refusal:
        ask("acme/poem", build(name="prose"), build(namespace="bob"))

    assert str(refusal.value) == "no adapter is named `acme/poem`"
    assert refusal.value.hint == "`adapt search poem` lists what is available"
    assert refusal.value.exit_code == 10


@pytest.mark.parametrize(("typed", "meant"), [("acme/peom", "acme/poem"), ("peom", "acme/poem")])
def test_a_misspelt_name_is_answered_with_the_nearest(typed, meant):
    with pytest.raises(AdapterNotFound) as refusal:
        ask(typed, known_names=["acme/poem", "acme/contracts"])

    assert f"did you mean `{meant}`?" in refusal.value.hint


def test_a_bare_name_takes_the_only_namespace_that_has_it():
    assert ask("poem", build(), build(name="prose", namespace="bob")).chosen == build()


def test_a_bare_name_never_picks_among_namespaces():
    with pytest.raises(AmbiguousSpec) as refusal:
        ask("poem@base-7b", build("1.0.0"), build("99.0.0", namespace="stranger"))

    assert [spec for spec, _ in refusal.value.choices] == ["acme/poem@base-7b", "stranger/poem@base-7b"]


def test_a_bare_name_means_the_build_without_a_namespace_first():
    mine = build("1.0.0", namespace=None)

    assert ask("poem", build("99.0.0", namespace="stranger"), mine).chosen == mine


def test_text_from_a_stranger_reaches_no_message_unescaped():
    hostile = "\x1b[31m\u202eevil"
    builds = [
        build(hostile),
        build("1.0", DIFFERENT, base_label=hostile),
        build("1.1", DIFFERENT, differences=(hostile,)),
        build("1.2", yanked=hostile),
    ]

    with pytest.raises(NoCompatibleRelease) as refusal:
        ask("acme/poem", *builds)

    assert all(line.isprintable() for line in str(refusal.value).splitlines())
    assert len(refusal.value.refusals) == 4


# ---------------------------------------------------------------- laws

BUILDS = st.lists(
    st.builds(
        build,
        version=st.sampled_from(["1.0", "1.0.0", "1.1", "1.1rc1", "2.0", "0+abc", "0+abd", "bad"]),
        verdict=st.sampled_from(list(BaseVerdict)),
        rank=st.sampled_from([None, 8, 16]),
        base_label=st.sampled_from(["base-7b", "org/model", ""]),
        namespace=st.sampled_from(["acme", "acme", "bob", None]),
        yanked=st.sampled_from([None, None, "leaked"]),
        source=st.sampled_from(["hub", "local"]),
        differences=st.sampled_from([(), ("hidden_size",)]),
    ),
    max_size=8,
)
SPECS = st.sampled_from(
    ["poem", "acme/poem", "acme/poem@base-7b", "acme/poem==1.0", "acme/poem>=1.0,<2", "acme/poem>=1.1rc1",
     f"poem#{build('1.0').digest[:15]}"]
)  # fmt: skip
OPTIONS = st.fixed_dictionaries(
    {"base_given": st.booleans(), "allow_base_mismatch": st.booleans(), "rank": st.sampled_from([None, "-8", "-16"])}
)


def outcome(text, candidates, options):
    """Everything a caller can see of a resolution."""
    try:
        return ask(text, *candidates, **options)
    except AdapterHubError as refusal:
        return type(refusal), str(refusal), refusal.hint


@given(BUILDS.flatmap(lambda builds: st.tuples(st.just(builds), st.permutations(builds))), SPECS, OPTIONS)
def test_the_order_of_candidates_does_not_matter(orders, text, options):
    one, other = orders

    assert outcome(text, one, options) == outcome(text, other, options)


@given(BUILDS, SPECS, OPTIONS)
def test_what_is_chosen_is_what_was_asked_for(candidates, text, options):
    got = outcome(text, candidates, options)
    if not isinstance(got, Resolution):
        return

    spec, chosen = AdapterSpec.parse(text), got.chosen
    assert chosen in candidates or replace(chosen, yanked=None) in candidates
    assert spec.matches(chosen.version)
    assert spec.namespace in {None, chosen.namespace}
    assert options["rank"] is None or chosen.rank <= -int(options["rank"])
    assert chosen.verdict is not DIFFERENT or not options["base_given"]
    assert chosen.verdict is not SHAPES or not options["base_given"] or options["allow_base_mismatch"]
    assert chosen.yanked is None or spec.pinned_version or spec.digest_prefix
    assert chosen.yanked is None or any("yanked" in warning for warning in got.warnings)


@given(BUILDS, SPECS, OPTIONS)
def test_every_refused_build_has_exactly_one_reason_under_its_own_label(candidates, text, options):
    try:
        refusals = ask(text, *candidates, **options).refusals
    except NoCompatibleRelease as refusal:
        refusals = refusal.refusals
        spec = AdapterSpec.parse(text)
        named = [c for c in candidates if spec.namespace in {None, c.namespace}]
        bare = [c for c in named if c.namespace is None] if spec.namespace is None else []
        assert len(refusals) == len({c.digest for c in bare or named})
    except AdapterHubError:
        return

    assert len({label for label, _ in refusals}) == len(refusals)
    assert all(reason for _, reason in refusals)


@given(BUILDS, OPTIONS)
def test_no_final_build_that_fits_is_newer_than_the_chosen_one(candidates, options):
    candidates = [replace(c, namespace="acme", yanked=None, base_label="base-7b", verdict=SAME) for c in candidates]
    got = outcome("acme/poem", candidates, options)
    if not isinstance(got, Resolution):
        return

    versions = [Version(c.version) for c in candidates if c.version != "bad"]
    ranks = -int(options["rank"] or -99)
    fitting = [v for v, c in zip(versions, [c for c in candidates if c.version != "bad"], strict=True)
               if options["rank"] is None or (c.rank or 999) <= ranks]  # fmt: skip
    finals = [v for v in fitting if not v.is_prerelease]
    assert Version(got.chosen.version) == max(finals or fitting)


CLAUSES = st.lists(
    st.tuples(
        st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "~="]), st.sampled_from(["1.0", "1.1", "1.1rc1", "2.0"])
    ),
    min_size=1,
    max_size=3,
).map(lambda clauses: ",".join(operator + version for operator, version in clauses))
VERSIONS = st.lists(
    st.sampled_from(["0.9", "1.0", "1.0.1", "1.0.post1", "1.1rc1", "1.1", "1.1.dev3", "1!0.1", "2.0", "2.0+cu12"]),
    max_size=6,
)


@given(CLAUSES, VERSIONS)
def test_the_version_taken_is_the_newest_that_packaging_finds_inside_the_specifiers(clauses, versions):
    got = outcome(f"acme/poem{clauses}", [build(version) for version in versions], {})

    inside = [Version(v) for v in SpecifierSet(clauses).filter(versions, prereleases=True)]
    exact = [Version(c.version) for c in SpecifierSet(clauses) if c.operator == "==" and not c.version.endswith(".*")]
    inside = [v for v in inside if v.local is None or all(v == one for one in exact)]  # `==1.0` is not `1.0+x`
    asked = any(clause.prereleases for clause in SpecifierSet(clauses))
    finals = [version for version in inside if not version.is_prerelease]
    wanted = (inside if asked else finals) or inside
    assert (Version(got.chosen.version) if isinstance(got, Resolution) else None) == max(wanted, default=None)


@given(BUILDS.flatmap(lambda builds: st.tuples(st.just(builds), st.permutations(builds))), SPECS, OPTIONS)
def test_what_somebody_objects_to_is_never_taken_and_always_for_the_same_reason(orders, text, options):
    one, other = orders

    def objection(candidate: Candidate) -> str | None:
        return "odd rank" if candidate.rank == 16 else None

    got = outcome(text, one, options | {"objection": objection})

    assert got == outcome(text, other, options | {"objection": objection})
    if isinstance(got, Resolution):
        assert got.chosen.rank != 16

"""What a project's policy lets in: dates, namespaces, licences, methods and ranks, alone and in the choice of a build."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.core.dates import parse_time
from adapterhub.core.errors import AdapterHubError, NoCompatibleRelease, UsageProblem
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.install import plan_install, run_install
from adapterhub.distribution.resolve import Candidate, Resolution
from adapterhub.formats.release import Release
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from adapterhub.projects.file import objection_of, refusal
from adapterhub.projects.values import Policy
from tests.distribution.test_resolve import ask, build
from tests.support.command_line import Adapt

DAY = 86_400.0
NOW = parse_time("2026-06-15T12:00:00Z")


def refused(one: Candidate, **policy) -> str | None:
    return refusal(Policy(**policy), one, NOW)


# ---------------------------------------------------------------- one rule each


YOUNG = "`exclude-newer` 7d takes none after 2026-06-08T12:00:00Z"


@pytest.mark.parametrize(
    ("made", "policy", "reason"),
    [
        ({}, {}, None),
        ({"published_at": NOW - 8 * DAY}, {"exclude_newer": "7d"}, None),
        ({"published_at": NOW - 7 * DAY}, {"exclude_newer": "7d"}, None),
        ({"published_at": NOW - 7 * DAY + 1}, {"exclude_newer": "7d"}, f"dated 2026-06-08T12:00:01Z, {YOUNG}"),
        ({"published_at": NOW + 1}, {"exclude_newer": "7d"}, f"dated 2026-06-15T12:00:01Z, {YOUNG}"),
        ({}, {"exclude_newer": "7d"}, "its date is not known, `exclude-newer` 7d takes only what is known to be older"),
        ({"namespace": "Acme"}, {"allow_namespaces": ("acme",)}, None),
        ({"namespace": "Acme"}, {"deny_namespaces": ("ACME",)}, "policy `deny-namespaces` holds `Acme`"),
        ({"namespace": "Acme"}, {"allow_namespaces": ("acme",), "deny_namespaces": ("acme",)}, "policy `deny-namespaces` holds `Acme`"),
        ({"namespace": "Acme"}, {"allow_namespaces": ("bob", "eve")}, "namespace `Acme`, policy `allow-namespaces` holds `bob`, `eve`"),
        ({"namespace": None}, {"allow_namespaces": ("acme",)}, "no namespace, policy `allow-namespaces` holds `acme`"),
        ({"namespace": None}, {"deny_namespaces": ("acme",)}, None),
        ({"rank": 64}, {"max_rank": 64}, None),
        ({"rank": 128}, {"max_rank": 64}, "rank 128, policy `max-rank` is 64"),
        ({"rank": None}, {"max_rank": 64}, "rank not recorded, policy `max-rank` is 64"),
        ({"method": "LORA"}, {"allow_methods": ("lora",)}, None),
        ({"method": "LORA,rslora"}, {"allow_methods": ("lora",)}, "made with `rslora`, policy `allow-methods` holds `lora`"),
        ({"method": "LORA,rslora"}, {"allow_methods": ("lora", "rslora")}, None),
        ({"method": "LORA,dora"}, {"deny_methods": ("DoRA",)}, "made with `dora`, policy `deny-methods` holds `DoRA`"),
        ({"method": "LORA,dora"}, {"allow_methods": ("lora", "dora"), "deny_methods": ("dora",)}, "made with `dora`, policy `deny-methods` holds `dora`"),
        ({"method": ""}, {"allow_methods": ("lora",)}, "states no method, policy `allow-methods` holds `lora`"),
        ({"method": "LORA"}, {"deny_methods": ("dora",)}, None),
    ],
)  # fmt: skip
def test_each_rule_lets_in_or_refuses_with_its_reason(made, policy, reason):
    assert refused(build(**made), **policy) == reason


@pytest.mark.parametrize(
    ("stated", "allow", "deny", "is_refused"),
    [
        ("mit", ("MIT",), (), False),
        ("MIT", ("Apache-2.0",), (), True),
        (None, ("MIT",), (), True),
        (None, (), ("MIT",), False),
        ("MIT OR GPL-3.0-only", ("MIT",), (), False),
        ("MIT AND GPL-3.0-only", ("MIT",), (), True),
        ("MIT AND GPL-3.0-only", ("MIT", "GPL-3.0-only"), (), False),
        ("MIT OR GPL-3.0-only", (), ("GPL-3.0-only",), False),
        ("MIT AND GPL-3.0-only", (), ("gpl-3.0-only",), True),
        ("MIT OR GPL-3.0-only", ("GPL-3.0-only",), ("GPL-3.0-only",), True),
        ("MIT OR GPL-3.0-only", ("GPL-3.0-only",), ("MIT",), False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", (), ("GPL-2.0-only",), True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ("GPL-2.0-only",), (), False),
        ("llama3.1", ("llama3.1",), (), False),
        ("llama3.1", (), ("LicenseRef-Llama-3.1",), True),
        ("gemma", ("MIT",), (), True),
        ("CC-BY-NC-4.0, see the file", (), ("CC-BY-NC-4.0",), True),
        ("ask us", (), ("MIT",), False),
        ("ask us", ("MIT",), (), True),
        ("ask us", ("Ask us",), (), False),
    ],
)
def test_a_licence_comes_in_by_one_way_to_meet_it_that_is_allowed_and_not_denied(stated, allow, deny, is_refused):
    reason = refused(build(license=stated), allow_licenses=allow, deny_licenses=deny)

    assert (reason is not None) == is_refused


def test_all_reasons_are_told_at_once():
    reason = refused(build(rank=128, license="MIT"), max_rank=64, deny_licenses=("mit",), exclude_newer="7d")

    assert reason is not None
    assert [part.split(",")[0] for part in reason.split("; ")] == ["licence MIT", "rank 128", "its date is not known"]


def test_text_from_a_stranger_is_shown_with_its_control_characters_escaped():
    hostile = "\x1b[31m\u202eevil"

    for one, policy in [
        (build(license=hostile), {"allow_licenses": ("MIT",)}),
        (build(namespace=hostile), {"allow_namespaces": ("acme",)}),
        (build(method=hostile), {"allow_methods": ("lora",)}),
    ]:
        assert refused(one, **policy).isprintable()


# ---------------------------------------------------------------- in the choice of a build
def choose(*candidates: Candidate, **policy) -> Resolution:
    return ask("acme/poem", *candidates, objection=objection_of(Policy(**policy), NOW))


def test_the_newest_release_that_the_policy_lets_in_is_taken_and_the_others_have_its_reasons():
    old, new = build("1.0.0", published_at=NOW - 30 * DAY), build("1.1.0", published_at=NOW - DAY)

    resolution = choose(old, new, exclude_newer="7d")

    assert resolution.chosen == old
    ((label, reason),) = resolution.refusals
    assert label == "1.1.0"
    assert reason.startswith("dated 2026-06-14T12:00:00Z, `exclude-newer` 7d")


def test_when_the_policy_keeps_out_everything_each_release_has_its_reason():
    with pytest.raises(NoCompatibleRelease) as refusal:
        choose(build("1.0.0", rank=128), build("1.1.0", rank=16, license="GPL-3.0-only"), max_rank=64,
               deny_licenses=("GPL-3.0-only",))  # fmt: skip

    assert refusal.value.refusals == (
        ("1.1.0", "licence GPL-3.0-only, policy `deny-licenses` holds `GPL-3.0-only`"),
        ("1.0.0", "rank 128, policy `max-rank` is 64"),
    )


def test_a_pin_does_not_get_around_the_policy():
    new = build("1.1.0", published_at=NOW)

    for pin in ("==1.1.0", f"#{new.digest[:19]}"):
        with pytest.raises(NoCompatibleRelease, match="exclude-newer"):
            ask(f"acme/poem{pin}", new, objection=objection_of(Policy(exclude_newer="7d"), NOW))


def test_of_two_dates_for_the_same_bytes_the_earlier_counts_wherever_it_is_known():
    here, there = build(source="library", published_at=NOW), build(source="hub", published_at=NOW - 30 * DAY)

    for order in ((here, there), (there, here), (build(source="a folder"), here, there)):
        assert choose(*order, exclude_newer="7d").chosen.published_at == NOW - 30 * DAY


def test_a_policy_that_cannot_be_read_is_refused_before_any_release_is_looked_at():
    with pytest.raises(UsageProblem, match="expected an age"):
        objection_of(Policy(exclude_newer="soon"), NOW)


POLICIES = st.builds(
    Policy,
    max_rank=st.sampled_from([None, 8, 16]),
    exclude_newer=st.sampled_from([None, "7d", "2026-06-10"]),
    deny_licenses=st.sampled_from([(), ("MIT",)]),
    allow_methods=st.sampled_from([(), ("lora",)]),
    allow_namespaces=st.sampled_from([(), ("acme",)]),
)
OFFERS = st.lists(
    st.builds(
        build,
        version=st.sampled_from(["1.0", "1.1", "1.1rc1", "2.0"]),
        rank=st.sampled_from([None, 8, 16, 32]),
        license=st.sampled_from([None, "MIT", "MIT OR Apache-2.0"]),
        method=st.sampled_from(["LORA", "LORA,dora"]),
        published_at=st.sampled_from([None, NOW, NOW - 8 * DAY]),
        source=st.sampled_from(["hub", "local"]),
        yanked=st.sampled_from([None, "leaked"]),
    ),
    max_size=8,
)


def outcome(candidates, policy):
    try:
        return ask("acme/poem", *candidates, objection=objection_of(policy, NOW))
    except AdapterHubError as error:
        return type(error), str(error), error.hint


@given(OFFERS.flatmap(lambda offers: st.tuples(st.just(offers), st.permutations(offers))), POLICIES)
def test_with_a_policy_too_the_order_of_candidates_does_not_matter_and_twice_is_the_same(orders, policy):
    one, other = orders

    assert outcome(one, policy) == outcome(other, policy) == outcome(one, policy)


@given(OFFERS, POLICIES)
def test_nothing_is_chosen_that_the_policy_refuses(candidates, policy):
    got = outcome(candidates, policy)

    if isinstance(got, Resolution):
        assert refusal(policy, got.chosen, NOW) is None


@given(OFFERS, POLICIES)
def test_a_stricter_policy_never_lets_more_in(candidates, policy):
    stricter = replace(policy, max_rank=min(policy.max_rank or 8, 8), exclude_newer="30d")

    for one in candidates:
        assert refusal(policy, one, NOW) is None or refusal(stricter, one, NOW) is not None


# ---------------------------------------------------------------- where dates come from
def published(library: Library, add, folder: Path, **made) -> Path:
    manifest = add(into=library, **made).build.manifest
    copy(Release(manifest=manifest, namespace=None, origin="there"), library, PublishedDirectory(folder))
    return folder / manifest.name / f"{manifest.version}-r{manifest.rank}"


def dated(path: Path, at: float) -> None:
    os.utime(path, (at, at))


def test_a_directory_dates_a_build_by_its_manifest_and_a_plain_folder_by_its_newest_file(tmp_path, add):
    from adapterhub.library.directory import PlainFolder
    from tests.support.tiny import make_adapter

    folder = published(Library(tmp_path / "far"), add, tmp_path / "published", name="legal-qa")
    dated(folder / "adapterhub.json", NOW - 9 * DAY)
    plain = make_adapter(tmp_path / "plain")
    dated(plain / "adapter_config.json", NOW - 5 * DAY)
    dated(plain / "adapter_model.safetensors", NOW - 3 * DAY)
    spec = AdapterSpec.parse("legal-qa")

    (one,) = PublishedDirectory(tmp_path / "published").releases(spec)
    (other,) = PlainFolder(plain).releases(spec)

    assert one.published_at == NOW - 9 * DAY
    assert other.published_at == NOW - 3 * DAY


def test_a_library_dates_a_build_by_when_it_came_in(library, add):
    folder = add("legal-qa").build.folder
    dated(folder, NOW)

    (release,) = library.releases(AdapterSpec.parse("legal-qa"))

    assert release.published_at == NOW


def test_a_build_that_came_in_today_is_taken_by_the_older_date_of_its_source(tmp_path, library, add, base):
    folder = published(Library(tmp_path / "far"), add, tmp_path / "published", name="legal-qa")
    dated(folder / "adapterhub.json", NOW - 30 * DAY)
    place, spec = PublishedDirectory(tmp_path / "published"), AdapterSpec.parse("legal-qa")
    present = run_install(library, plan_install(library, spec, [place], wanted=None)).build
    dated(present.folder, NOW)
    objection = objection_of(Policy(exclude_newer="7d"), NOW)

    plan = plan_install(library, spec, [place], wanted=None, objection=objection)

    assert plan.present == library.builds_named("legal-qa")[0]
    with pytest.raises(NoCompatibleRelease, match="dated 2026-06-15T12:00:00Z"):
        plan_install(library, spec, [], wanted=None, objection=objection)


# ---------------------------------------------------------------- on the command line
@pytest.fixture
def two_versions(tmp_path, add) -> Adapt:
    """`./published` with 1.0.0, a year old, of rank 4, and 2.0.0, an hour old, of rank 32."""
    import time

    far = Library(tmp_path / "far")
    old = published(far, add, tmp_path / "published", name="legal-qa", version="1.0.0", rank=4)
    new = published(far, add, tmp_path / "published", name="legal-qa", version="2.0.0", rank=32, seed=2)
    dated(old / "adapterhub.json", time.time() - 365 * DAY)
    dated(new / "adapterhub.json", time.time() - 3600)
    return Adapt(tmp_path, home="new-home")


def test_install_refuses_with_a_reason_for_each_release(two_versions):
    done = two_versions(
        "install", "legal-qa", "--from", two_versions.folder / "published", "--exclude-newer", "2020-01-01"
    )

    assert done.exit_code == 11
    assert done.stderr.count("`exclude-newer` 2020-01-01 takes none after 2020-01-01T23:59:59Z") == 2


@pytest.mark.parametrize(
    ("policy", "option", "version"),
    [
        ("max-rank = 16", [], "1.0.0"),
        ('exclude-newer = "7d"', [], "1.0.0"),
        ('exclude-newer = "7d"', ["--exclude-newer", "0h"], "2.0.0"),
        ("", [], "2.0.0"),
        (None, [], "2.0.0"),
        (None, ["--exclude-newer", "7d"], "1.0.0"),
        (None, ["--exclude-newer", "0h"], "2.0.0"),
    ],
)
def test_install_takes_the_newest_that_the_policy_of_the_project_lets_in_and_the_option_goes_before_its_date(
    two_versions, policy, option, version
):
    if policy is not None:
        project(two_versions, policy)

    done = two_versions("install", "legal-qa", "--from", two_versions.folder / "published", *option)

    assert done.exit_code == 0, done.stderr
    assert f"installed legal-qa {version}" in done.stdout


# ---------------------------------------------------------------- pull and info, which bring nothing into the library
@pytest.fixture
def both_installed(two_versions) -> Adapt:
    """Both versions in the library, and no project yet."""
    for version in ("1.0.0", "2.0.0"):
        two_versions.ok("install", f"legal-qa=={version}", "--from", two_versions.folder / "published")
    return two_versions


def project(adapt: Adapt, policy: str) -> None:
    (adapt.folder / "adapters.toml").write_text(f"[project]\n[policy]\n{policy}\n")


@pytest.mark.parametrize(
    "policy",
    [
        "max-rank = 2",
        'allow-namespaces = ["acme"]',
        'allow-licenses = ["MIT"]',
        'deny-methods = ["lora"]',
        'exclude-newer = "7d"',
    ],
)
def test_pull_refuses_what_install_refuses_in_the_same_words(both_installed, policy):
    project(both_installed, policy)

    said = both_installed.fails(11, "pull", "legal-qa", "out")

    assert said == both_installed.fails(11, "install", "legal-qa")
    assert not (both_installed.folder / "out").exists()


def test_exclude_newer_of_pull_goes_before_the_date_of_the_project_and_holds_outside_of_any(both_installed):
    assert "takes none after" in both_installed.fails(11, "pull", "legal-qa", "out", "--exclude-newer", "7d")
    project(both_installed, "max-rank = 16")
    assert both_installed.json("pull", "legal-qa", "small")["version"] == "1.0.0"
    project(both_installed, 'exclude-newer = "7d"')

    assert both_installed.json("pull", "legal-qa", "out", "--exclude-newer", "0h")["version"] == "2.0.0"


def test_info_says_that_the_policy_of_the_project_would_refuse_an_installed_build(both_installed):
    project(both_installed, "max-rank = 16")

    small, large = (both_installed.json("info", f"legal-qa=={version}") for version in ("1.0.0", "2.0.0"))

    assert small["policy_refusal"] is None
    assert large["policy_refusal"] == "rank 32, policy `max-rank` is 16"
    line = "policy\trefused by the project's policy: rank 32, policy `max-rank` is 16\n"
    assert line in both_installed.ok("info", "legal-qa==2.0.0")
    assert "\npolicy\t" not in both_installed.ok("info", "legal-qa==1.0.0")
    (both_installed.folder / "adapters.toml").unlink()
    assert both_installed.json("info", "legal-qa==2.0.0")["policy_refusal"] is None

"""Adapter specs: what parses, what it prints as, and what a refusal suggests."""

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from adapterhub.core.errors import SpecError
from adapterhub.core.specs import (
    AdapterSpec,
    BaseSpec,
    hint_for_unknown_base,
    looks_like_revision,
    parse_name,
    parse_namespace,
    parse_version,
)

REFUSED = [
    "", "@", "a@", "@1.0", "a/b/c/d", "../x", "a/../b", "-x", "--help", "a b", "a\tb", "a\0b", "x" * 300,
    "name@1.0/../../x", "name@>=2,<1", "name@latest@1", "name'; drop table adapters;--", "%2e%2e/x",
    "\u0430cme/poem", "acme/\u2026", "acme/poem@\ud800", "ACME/..", "acme/.hidden", "http://169.254.169.254/x",
]  # fmt: skip
ACCEPTED = ["acme/poem", "acme/poem@1.0.0", "acme/poem@sha256:" + "a" * 64]


@pytest.mark.parametrize("text", REFUSED)
def test_hostile_reference_is_refused_in_one_printable_line(text):
    with pytest.raises(SpecError) as refusal:
        AdapterSpec.parse(text)

    assert str(refusal.value).isprintable()
    assert refusal.value.hint.isprintable()
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("text", ACCEPTED)
def test_plain_reference_is_accepted(text):
    assert text == str(AdapterSpec.parse(text))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("legal-qa", (None, "legal-qa", None, "", None)),
        ("legal-qa@base-7b", (None, "legal-qa", ("alias", "base-7b"), "", None)),
        ("acme/legal-qa@base-7b>=1.2,<2", ("acme", "legal-qa", ("alias", "base-7b"), ">=1.2,<2", None)),
        ("legal-qa@meta-llama/Llama-2==1.0", (None, "legal-qa", ("hub", "meta-llama/Llama-2"), "==1.0", None)),
        ("legal-qa@./models/base-7b", (None, "legal-qa", ("path", "./models/base-7b"), "", None)),
        ("legal-qa@/srv/my models/b@2~=1.4", (None, "legal-qa", ("path", "/srv/my models/b@2"), "~=1.4", None)),
        ("legal-qa@~/models/epoch=3!=1.0", (None, "legal-qa", ("path", "~/models/epoch=3"), "!=1.0", None)),
        ("legal-qa@sha256:9f86d081<2", (None, "legal-qa", ("digest", "sha256:9f86d081"), "<2", None)),
        ("legal-qa#sha256:9f86d081", (None, "legal-qa", None, "", "sha256:9f86d081")),
        ("Acme-Org/legal-qa==1.0#sha256:9f86d081", ("Acme-Org", "legal-qa", None, "==1.0", "sha256:9f86d081")),
        ("legal-qa@7B", (None, "legal-qa", ("alias", "7B"), "", None)),
        ("legal-qa@.", (None, "legal-qa", ("path", "."), "", None)),
    ],
)
def test_each_part_is_read(text, parts):
    spec = AdapterSpec.parse(text)

    base = spec.base and (spec.base.kind, spec.base.text)
    assert parts == (spec.namespace, spec.name, base, spec.specifiers, spec.digest_prefix)
    assert text == str(spec)


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("Legal-QA", "`legal-qa`"),
        ("A/A@A", "`a`"),
        ("Acme/Legal-QA@base-7b", "`Acme/legal-qa@base-7b`"),
        ("legal-qa=1.0", "`legal-qa==1.0`"),
        ("legal-qa@base-7b=1.0", "`legal-qa@base-7b==1.0`"),
        ("legal-qa:1.0", "`legal-qa==1.0`"),
        ("legal-qa@base-7b:1.0", "`legal-qa@base-7b==1.0`"),
        ("legal-qa 1.0", "`legal-qa==1.0`"),
        ("legal-qa^1.2", "`legal-qa~=1.2`"),
        ("legal-qa >= 1.2, < 2", "`legal-qa>=1.2,<2`"),
        ("legal-qa >=1.2 <2", "`legal-qa>=1.2,<2`"),
        ("legal-qa>=1.2 <2", "`legal-qa>=1.2,<2`"),
        ("legal-qa>=1.2@base-7b", "`legal-qa@base-7b>=1.2`"),
        ("legal-qa@>=2,<1", "`legal-qa>=2,<1`"),
        ("legal-qa===1.0", "`==1.0`"),
        ("legal-qa~1.4", "`~=1.4.0`"),
        ("legal-qa@b~=1", "`~=1.0`"),
        ("legal-qa#9f86d081", "`#sha256:9f86d081`"),
        ("legal-qa#sha256:9F86D081", "`#sha256:9f86d081`"),
        ("legal-qa@SHA256:9F86D081", "`@sha256:9f86d081`"),
        ("legal-qa@models\\base", "`./models/base`"),
        ("legal-qa@models/base/7b", "`./models/base/7b`"),
        ("legal-qa@https://huggingface.co/org/model", "`org/model`"),
        ("https://huggingface.co/acme/legal-qa", "--remote"),
        ("./out", "adapt add"),
        ("legal-qa@./a ==1", "adapt base add"),
    ],
)
def test_refusal_suggests_what_was_meant(typed, suggested):
    with pytest.raises(SpecError) as refusal:
        AdapterSpec.parse(typed)

    assert suggested in refusal.value.hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x" * 97, "at most 96 characters, this has 97"),
        ("a..b", "cannot hold `..`"),
        ("a--b", "cannot hold `--`"),
        ("a.", "not with `.`"),
        ("a-", "not with `-`"),
        ("_a", "not with `_`"),
        ("con", "Windows"),
        ("aux.v2", "Windows"),
        ("caf\u00e9", "(U+00E9)"),
        ("", "missing"),
        ("a\n", "U+000A"),
        ("a/b", "not `/`"),
    ],
)
def test_name_that_is_unsafe_as_a_folder_is_refused(text, reason):
    with pytest.raises(SpecError) as refusal:
        parse_name(text)

    assert reason in str(refusal.value)


def test_namespace_may_hold_upper_case_and_a_name_may_not():
    assert parse_namespace("HuggingFaceTB") == "HuggingFaceTB"
    with pytest.raises(SpecError, match="a-z, 0-9"):
        parse_name("HuggingFaceTB")


def specifiers_of(text):
    return AdapterSpec.parse(f"legal-qa{text}").specifiers


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("", ""),
        ("<2,>=1.2", ">=1.2,<2"),
        (">=1.2, <2,", ">=1.2,<2"),
        ("==v1.0", "==1.0"),
        ("==1.0-RC1,==1.0rc1", "==1.0rc1"),
        ("==1.0.*", "==1.0.*"),
        ("~=1.4.0", "~=1.4.0"),
        ("==0+ABCDEF123456", "==0+abcdef123456"),
        ("!=1!2.0", "!=1!2.0"),
    ],
)
def test_specifiers_have_one_normal_form(typed, normal):
    assert normal == specifiers_of(typed)


@pytest.mark.parametrize("text", ["==", ">=1.0+local", "==1.0;x", "=1.0", "== foo", "~=1", "=" * 300, "*"])
def test_text_that_is_no_version_range_is_refused(text):
    with pytest.raises(SpecError):
        specifiers_of(text)


@pytest.mark.parametrize(
    ("specifiers", "version", "inside"),
    [
        ("", "1.0", True),
        (">=1.2,<2", "1.2", True),
        (">=1.2,<2", "2.0", False),
        (">=1.2,<2", "1.3rc1", True),
        ("==1.0", "1.0.0", True),
        ("==0", "0+abcdef123456", False),
        ("==1.0.0", "1.0.0+evil", False),
        ("==1.0+Evil", "1.0.0+evil", True),
        ("==1.0,>=1", "1.0.0+evil", False),
        ("==0+abcdef123456", "0+abcdef123456", True),
        ("==0+abcdef123456", "0+abcdef123457", False),
        ("==0+000123456789", "0+000123456789", True),
        (">=0", "0+abcdef123456", True),
        (">0", "0+abcdef123456", False),
    ],
)
def test_versions_match_as_pep_440_says(specifiers, version, inside):
    assert inside is AdapterSpec.parse(f"legal-qa{specifiers}").matches(version)


def test_matching_a_version_that_is_none_is_refused():
    with pytest.raises(SpecError, match="PEP 440"):
        AdapterSpec.parse("legal-qa").matches("latest")


@pytest.mark.parametrize(
    ("text", "pinned", "prereleases"),
    [
        ("a", None, False),
        ("a==1.0", "1.0", False),
        ("a==1.0.*", None, False),
        ("a>=1.0", None, False),
        ("a==2.0rc1", "2.0rc1", True),
        ("a>=2.0.dev1", None, True),
        ("a>=1.0,!=2.0rc1", None, False),
        ("a==0+abcdef123456", "0+abcdef123456", False),
        ("a#sha256:9f86d081", None, True),
    ],
)
def test_a_spec_knows_what_it_pins_and_whether_it_asks_for_prereleases(text, pinned, prereleases):
    spec = AdapterSpec.parse(text)

    assert (pinned, prereleases) == (spec.pinned_version, spec.asks_for_prereleases)


@pytest.mark.parametrize("text", ["1.0.0", "v1.2", "2.0rc1", "main", "master", "latest", "abcdef1", "a" * 40, "1"])
def test_what_other_tools_write_after_an_at_sign_is_recognised(text):
    assert looks_like_revision(text)


@pytest.mark.parametrize("text", ["base-7b", "7b", "13B", "abc", "a" * 41, "llama", "", "ABCDEF1", "org/model"])
def test_a_base_name_is_not_taken_for_a_revision(text):
    assert not looks_like_revision(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("acme/poem@v1.0.0", "`acme/poem==1.0.0`"),
        ("poem@main", "`poem==1.0.0`"),
        ("poem@models/base", "`./models/base`"),
        ("poem@base-7b", ""),
        ("poem@./1.0", ""),
        ("poem", ""),
    ],
)
def test_an_unknown_base_that_reads_as_something_else_is_explained(text, told):
    hint = hint_for_unknown_base(AdapterSpec.parse(text))

    assert told in hint
    assert bool(told) is bool(hint)


@pytest.mark.parametrize(
    ("typed", "normal"), [("1.0", "1.0"), ("v1.0", "1.0"), ("1.0-RC1", "1.0rc1"), ("0+abcdef123456", "0+abcdef123456")]
)
def test_a_version_is_read_in_its_normal_form(typed, normal):
    assert normal == parse_version(typed)


@pytest.mark.parametrize("text", ["", "latest", " 1.0", "1.0\n", "1.0/..", "1" * 65, "1.0 beta", "\u0661.0"])
def test_text_that_is_no_version_is_refused(text):
    with pytest.raises(SpecError):
        parse_version(text)


@pytest.mark.parametrize(
    "text", ["./a==b", "./a>b", "./a#b", "./a ", "./a=", "./a~", "./a!", "/a~=b", "./a\nb", "~", "~me/x", "a b"]
)
def test_a_base_that_would_print_as_another_spec_is_refused(text):
    with pytest.raises(SpecError):
        BaseSpec.parse(text)


# ---------------------------------------------------------------- laws


def _word(alphabet: str) -> st.SearchStrategy[str]:
    inner = st.text(alphabet + "._-", max_size=12)
    word = st.builds(lambda a, b, c: a + b + c, st.sampled_from(alphabet), inner, st.sampled_from(alphabet))
    devices = ("con", "prn", "aux", "nul", "com", "lpt")
    return word.filter(lambda w: ".." not in w and "--" not in w and not w.lower().startswith(devices))


LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
NAMES, WORDS = _word(LOWER), _word(LOWER + LOWER[:26].upper())
HEX = st.text("0123456789abcdef", min_size=8, max_size=64)
VERSIONS = st.builds(
    lambda release, tail: ".".join(map(str, release)) + tail,
    st.lists(st.integers(0, 30), min_size=2, max_size=4),
    st.sampled_from(["", "a1", "rc2", ".post3", ".dev4", "-RC1", "a1.dev2"]),
)
CLAUSES = st.builds(str.__add__, st.sampled_from(["==", "!=", ">=", "<=", "~=", "<", ">"]), VERSIONS)
SPECIFIERS = st.lists(CLAUSES, max_size=3).map(",".join)
PATHS = st.builds(
    str.__add__, st.sampled_from([".", "./", "../", "/", "~/"]), st.text("ab/ .@~=!\u00e9-", max_size=12)
).filter(lambda p: p[-1] not in " =!~" and not any(op in p for op in ("==", "!=", "~=")))
BASES = st.one_of(WORDS, st.builds("{}/{}".format, WORDS, WORDS), HEX.map("sha256:{}".format), PATHS)


@st.composite
def specs(draw):
    namespace, base, digest = draw(st.none() | WORDS), draw(st.none() | BASES), draw(st.none() | HEX)
    return AdapterSpec(
        namespace=namespace,
        name=parse_name(draw(NAMES)),
        base=None if base is None else BaseSpec.parse(base),
        specifiers=specifiers_of(draw(SPECIFIERS)),
        digest_prefix=None if digest is None else f"sha256:{digest}",
    )


@given(specs())
def test_print_and_parse_are_inverse(spec):
    assert spec == AdapterSpec.parse(str(spec))


@given(BASES)
def test_print_and_parse_of_a_base_are_inverse(text):
    assert text == str(BaseSpec.parse(text))


def _read(text: str) -> AdapterSpec | SpecError:
    try:
        return AdapterSpec.parse(text)
    except SpecError as refusal:
        return refusal


@given(st.text(max_size=60) | st.text("ab1.-_/@=<>!~#:, *sha256", max_size=40))
@example("a@./b!==1")
@example("a@./b=~=1.0")
def test_any_text_is_refused_or_read_to_a_value_that_prints_back(text):
    read = _read(text)

    if isinstance(read, SpecError):
        assert f"{read}{read.hint}".isprintable()
    else:
        assert read == AdapterSpec.parse(str(read))


@given(SPECIFIERS, VERSIONS)
def test_the_normal_form_of_specifiers_takes_the_same_versions(text, version):
    normal = specifiers_of(text)

    assert normal == specifiers_of(normal)
    assert SpecifierSet(text).contains(version, prereleases=True) is SpecifierSet(normal).contains(
        version, prereleases=True
    )


@given(st.permutations([">=1.2", "<2", "!=1.5", "~=1.3"]))
def test_the_order_of_clauses_does_not_matter(clauses):
    assert specifiers_of(",".join(clauses)) == "~=1.3,>=1.2,<2,!=1.5"


def test_a_spec_without_specifiers_is_read_without_importing_packaging():
    code = (
        "import sys; from adapterhub.core.specs import AdapterSpec; AdapterSpec.parse('acme/legal-qa@base-7b');"
        "print(sorted(m for m in ('packaging', 'torch', 'numpy') if m in sys.modules))"
    )

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"

"""The documentation site, without Sphinx: `nox -s site` builds it, these tests look at what it is built of."""

import html
import re
from pathlib import Path

import pytest

from docs import recording
from docs.website import built, pages

ROOT = Path(__file__).resolve().parent.parent


def test_the_navigation_lists_every_page_once():
    listed = [page for part in pages.parts().values() for page in part]

    assert sorted(listed) == sorted(set(pages.every_page()) - {pages.START})
    assert all(page.is_relative_to(pages.DOCS) or page in pages.BESIDE for page in listed)


def test_every_link_of_a_page_leads_to_a_file_of_the_site(tmp_path):
    pages.stage(tmp_path)
    broken = [
        f"{page.relative_to(tmp_path)}: {target}"
        for page in tmp_path.rglob("*.md")
        for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", pages.without_code(page.read_text(encoding="utf-8")))
        if not (page.parent / target).is_file()
    ]

    assert broken == []
    assert "](CONTRIBUTING.md)" in (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "](explanation/architecture.md)" in (tmp_path / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_llms_txt_says_what_each_page_is_for():
    rows = [line for line in pages.llms_text().splitlines() if line.startswith("- ")]

    assert len(rows) == len(pages.every_page()) - 1
    assert [row for row in rows if not re.fullmatch(r"- \[[^\]]+\]\([\w./-]+\.md\): .{15,}[^.]\.", row)] == []


def test_the_site_documents_every_public_name():
    text = pages.api_text()

    assert ".. autoclass:: adapterhub.Library\n" in text
    assert ".. autofunction:: adapterhub.attach" in text
    assert ".. automodule:: adapterhub.vllm_plugin.in_process" in text


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ('<p id="here"><a href="#here">x</a><a href="https://example.org/">y</a><img src="a.svg">', None),
        ('<script src="https://cdn.example.org/x.js"></script>', "loads https://cdn.example.org/x.js"),
        ('<link rel="stylesheet" href="//fonts.example.org/f.css">', "loads //fonts.example.org/f.css"),
        ('<style>@font-face{src:url("https://f.example.org/f.woff2")}</style>', "loads https://f.example.org/f.woff2"),
        ('<a href="#gone">x</a>', "#gone leads nowhere"),
        ('<a href="gone.html">x</a>', "gone.html leads nowhere"),
    ],
)
def test_what_a_built_page_loads_from_elsewhere_or_links_to_in_vain_is_told(tmp_path, page, said):
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "index.html").write_text(page)

    found = built.problems(tmp_path)

    assert (found == []) if said is None else all(said in problem for problem in found or [""])


def test_the_packages_of_the_site_are_pinned_and_ci_builds_it():
    lines = (pages.DOCS / "website" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    workflow = (ROOT / ".github" / "workflows" / "site.yml").read_text(encoding="utf-8")

    assert [line for line in lines if not re.match(r"#|[\w-]+==[\d.]+( |$)", line)] == []
    assert "nox -s site" in workflow


def test_the_package_index_gets_no_picture_and_no_relative_link():
    pytest.importorskip("hatchling")
    from docs.website.readme import for_index

    text = for_index((ROOT / "README.md").read_text(encoding="utf-8"))

    assert re.findall(r"!\[|\]\((?!https:)", text) == []
    assert "A registry has the same pages for a team" in text


def test_the_recording_of_the_readme_is_that_of_its_script():
    picture = recording.PICTURE.read_text(encoding="utf-8")
    shown = [html.unescape(text) for text in re.findall(r'<text class="command"[^>]*>\$ ([^<]*)</text>', picture)]

    assert shown == list(recording.STEPS)
    assert f"]({recording.PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"https?://(?!www\.w3\.org/)", picture) == []

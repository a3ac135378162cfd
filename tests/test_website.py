"""The documentation site, without Sphinx: `nox -s site` builds it, these tests look at what it is built of."""

import ast
import email
import html
import os
import re
import subprocess
import sys
import zipfile
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
    assert "](reference/stability.md)" in (tmp_path / "CONTRIBUTING.md").read_text(encoding="utf-8")


WISHES = {
    "install from PyPI": "how-to/install",
    "add my adapter": "how-to/add",
    "use it in transformers": "how-to/transformers-peft-vllm",
    "use it in vLLM": "how-to/serve",
    "merge two": "how-to/merge",
    "publish": "how-to/publish",
    "a registry for a team": "how-to/registry",
    "CI": "how-to/scripts",
    "why verify refuses": "how-to/refused",
    "how a base is identified": "explanation/base-identity",
    "the Python interface": "reference/python",
    "limits": "explanation/limits",
}
"""The page of each wish of a newcomer; the build of the site tries the words for most of them in its search."""


def test_each_wish_of_a_newcomer_is_one_click_from_the_start_page_and_two_from_the_readme():
    start = pages.linked(pages.START, pages.START.read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert [wish for wish, page in WISHES.items() if pages.DOCS / f"{page}.md" not in start] == []
    assert pages.START in pages.linked(ROOT / "README.md", readme)
    assert set(built.ANSWERS.values()) <= {pages.place(page).with_suffix("").as_posix() for page in start}


def test_the_sidebar_has_the_first_part_and_a_collapsed_entry_for_each_other_one():
    first, *others = pages.parts().items()
    entries = pages.navigation().splitlines()[3:-1]
    inside = "".join(pages.part_pages().values())

    assert entries[: len(first[1])] == [pages.place(page).with_suffix("").as_posix() for page in first[1]]
    assert [f"{entry}.md" for entry in entries[len(first[1]) :]] == list(pages.part_pages())
    assert [page for _, part in others for page in part if f"](../{pages.place(page).as_posix()})" not in inside] == []


def test_a_site_that_is_too_large_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(built, "LARGEST", 9)
    (tmp_path / "index.html").write_text("0123456789")

    assert built.too_large(tmp_path) == ["the site has 10 bytes, at most 9 are allowed"]


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


def test_the_site_imports_only_the_packages_that_its_environment_has():
    """Its environment has these requirements and what `.[registry]` installs, not the packages of the tests."""
    lines = (pages.DOCS / "website" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].replace("-", "_") for line in lines if "==" in line}
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted((pages.DOCS / "website").glob("*.py"))]
    imported = {
        name.partition(".")[0]
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }

    brought = pinned | sys.stdlib_module_names | {"docs", "adapterhub", "pygments"}  # sphinx requires pygments
    assert sorted(imported - brought) == []


def test_the_package_index_gets_no_picture_and_no_relative_link():
    pytest.importorskip("hatchling")
    from docs.website.readme import for_index

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text, linked = for_index(readme), for_index(readme, "https://example.org/acme/adapterhub")

    assert [found for shown in (text, linked) for found in re.findall(r"!\[|\]\((?!https:)|<!--|\.venv", shown)] == []
    assert "A registry\nhas the same pages for a team" in text
    assert "(https://example.org/acme/adapterhub/blob/main/docs/index.md)" in linked


@pytest.mark.slow
def test_the_first_commands_of_the_index_page_work_from_the_wheel_in_a_clean_environment(tmp_path):
    pytest.importorskip("hatchling")
    address = "https://example.org/acme/adapterhub"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"ADAPTERHUB_REPOSITORY": address}
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, env=environ, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        index = email.message_from_bytes(archive.read(name))
    [first, *_] = re.findall(r"^\$ (.*)$", index.get_payload(), re.MULTILINE)
    bare = {k: v for k, v in environ.items() if k != "VIRTUAL_ENV"} | {"ADAPTERHUB_HOME": str(tmp_path / "home")}
    bare |= {"PATH": f"{tmp_path / 'venv' / 'bin'}:{environ['PATH']}", "PIP_FIND_LINKS": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)

    typed = [first, "adapt --version", "adapt list --json", "adapt demo"]
    done = [
        subprocess.run(["bash", "-c", line], check=False, cwd=tmp_path, env=bare, text=True, capture_output=True)
        for line in typed
    ]

    assert first.startswith("pip install adapterhub")
    assert [run.returncode for run in done] == [0, 0, 0, 2], [run.stderr for run in done]
    assert "pip install 'adapterhub[demo]'" in done[-1].stderr
    assert f"Source, {address}" in index.get_all("Project-URL")
    assert f"]({address}/blob/main/docs/index.md)" in index.get_payload()


def test_the_recording_of_the_readme_is_that_of_its_script():
    picture = recording.PICTURE.read_text(encoding="utf-8")
    shown = [html.unescape(text) for text in re.findall(r'<text class="command"[^>]*>\$ ([^<]*)</text>', picture)]

    assert shown == list(recording.STEPS)
    assert f"]({recording.PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"https?://(?!www\.w3\.org/)", picture) == []

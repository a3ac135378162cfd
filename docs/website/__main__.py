"""Build the documentation site, without a warning, into `build/site`: `nox -s site` makes its environment, too.

The build fails for a page that the start page does not link to, a link or anchor that leads nowhere, and a font,
script, style or picture of another host, more than 10 MB, and a search that finds another page first than the one on
its word (if `node` is there to run it). The search needs no server: open `build/site/index.html`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from docs import registry_api
from docs.website import built, pages

BUILD = pages.ROOT / "build"


def main() -> int:
    """Build the site and look at it; the exit code."""
    source, site = BUILD / "site-pages", BUILD / "site"
    for folder in (source, site):
        shutil.rmtree(folder, ignore_errors=True)
    pages.stage(source)
    command = ["-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(pages.DOCS / "website"), "-b", "html"]
    command += ["-d", str(BUILD / "site-trees")]
    done = subprocess.run([sys.executable, *command, str(source), str(site)], check=False, cwd=pages.ROOT)  # noqa: S603
    if done.returncode:
        return done.returncode
    for page in pages.every_page():
        shutil.copyfile(source / pages.place(page), site / pages.place(page))
    schemas = shutil.copytree(source / "reference" / "schemas", site / "reference" / "schemas")
    (schemas / "registry.json").write_text(json.dumps(registry_api.openapi(), indent=1), encoding="utf-8")
    (site / "llms.txt").write_text(pages.llms_text(), encoding="utf-8")
    found = [*built.problems(site), *built.too_large(site), *built.wrong_answers(site)]
    sys.stderr.write("".join(f"{problem}\n" for problem in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

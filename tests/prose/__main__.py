"""Read the documentation as a prose linter does.

    pip install -e '.[docs]'
    python -m tests.prose                       every page that is held to the list of phrases
    python -m tests.prose docs/how-to/merge.md  these pages
    python -m tests.prose --report              habits of grammar in every kind of text, and refusals that help, counted
    python -m tests.prose --sample 7            50 sentences of each kind of text, drawn with this seed, to read aloud
    python -m tests.prose --refusals            places that refuse and do not name what was expected or the next step

Prints `page:line: finding` and exits with 1 when there is one. Our own phrases are findings that the tests refuse, too.
proselint's are advice; `LEFT_OUT` has the checks that we leave out, and why. We chose it over Vale, whose package on
PyPI downloads a program from another site when it is first run.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.prose.phrases import Finding, pages, phrases_in, prose

LEFT_OUT = {
    "typography": False,  # straight quotes and three dots are what a terminal shows
    "lexical_illusions": False,  # takes a heading and the first words below it for a repetition
    "spelling": False,  # the generated pages quote NO_COLOR and British words
    "weasel_words.very": False,  # a very small model is one
}


def advice_on(page: str, text: str) -> list[Finding]:
    """What proselint finds in a page."""
    from proselint.checks import __register__
    from proselint.config import DEFAULT
    from proselint.registry import CheckRegistry
    from proselint.tools import LintFile

    registry = CheckRegistry()
    if not registry.checks:
        registry.register_many(__register__)
    every = {name: on for name, on in DEFAULT["checks"].items() if name not in LEFT_OUT}
    config = DEFAULT | {"checks": LEFT_OUT | every}  # the first name that fits a check decides
    return [
        Finding(page, found.pos[0], text[slice(*(n - 1 for n in found.check_result.span))], found.check_result.message)
        for found in LintFile(page, prose(text)).lint(config)
    ]


def main(paths: list[str]) -> int:
    """Print what is found in these pages, or in all; the exit code."""
    if paths == ["--report"]:
        from tests.prose import grammar, refusals

        sys.stdout.write(f"{grammar.report()}\n{refusals.report()}")
        return 0
    if paths[:1] == ["--sample"]:
        from tests.prose.grammar import sample

        sys.stdout.writelines(f"{text.kind}  {text.place}  {text.sentence}\n" for text in sample(paths[1]))
        return 0
    if paths == ["--refusals"]:
        from tests.prose.refusals import unhelpful

        sys.stdout.write(unhelpful())
        return 0
    if find_spec("proselint") is None:
        sys.exit("proselint is not installed: pip install -e '.[docs]'")
    findings = []
    for path in list(map(Path, paths)) or pages():
        page, text = os.path.relpath(path), path.read_text(encoding="utf-8")
        findings += sorted(phrases_in(page, text) + advice_on(page, text), key=lambda finding: finding.line)
    sys.stdout.write("".join(f"{finding}\n" for finding in findings) or "no findings\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

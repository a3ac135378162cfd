"""The style sheet and the script of the pages are those that their authors published, licences beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from adapterhub.pages.rendering import static_files

PUBLISHED = {
    # htmx.org 4.0.1 (0BSD): `npm pack htmx.org@4.0.1`, dist/htmx.min.js
    "htmx-4.0.1.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
    # @picocss/pico 2.1.1 (MIT): `npm pack @picocss/pico@2.1.1`, css/pico.min.css
    "pico-2.1.1.min.css": "fbc9a63fc9fc9f72d12fd7fc9806e11fa9f77ae4f9cad146b27003a1119ba3db",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_vendored_files_have_the_digest_of_the_published_ones(name: str) -> None:
    assert hashlib.sha256(static_files()[name]).hexdigest() == PUBLISHED[name]
    assert static_files()[f"{name.partition('-')[0]}.LICENSE.txt"]


def test_axe_has_the_digest_of_the_published_one() -> None:
    folder = Path(__file__).parent.parent / "data" / "axe-core"  # axe-core 4.14.1 (MPL-2.0), axe.min.js

    assert (
        hashlib.sha256((folder / "axe-4.14.1.min.js").read_bytes()).hexdigest()
        == "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
    )
    assert "Mozilla Public License" in (folder / "LICENSE.txt").read_text()

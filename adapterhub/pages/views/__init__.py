"""The pages, one file each: every module here holds `PAGES`, in the order in which their paths are tried."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from adapterhub.pages.page import Page


def all_pages() -> tuple[Page, ...]:
    """Every page; paths with fewer parameters come first, so that a fixed path wins."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    found = [page for name in names for page in import_module(f"{__name__}.{name}").PAGES]
    return tuple(sorted(found, key=lambda page: (page.path.count("{"), page.path)))

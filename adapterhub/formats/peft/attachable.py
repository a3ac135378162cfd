"""Refuses by name what can never be attached here, before any other check looks at its files."""

from __future__ import annotations

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.methods import METHODS


def ensure_attachable(config: AdapterConfig, label: str) -> None:
    """Raise for a method or a setting that can never be attached here; `label` names the adapter.

    Raises:
        UnsupportedAdapter: with every such method or setting.
    """
    obstacles = config.obstacles
    if not config.method.factors:
        raise UnsupportedAdapter(
            f"`{shown(label)}` {obstacles[0]}, which cannot be attached here",
            hint=f"types that can be attached: {', '.join(name for name, method in METHODS.items() if method.factors)}",
        )
    if obstacles:
        raise UnsupportedAdapter(f"`{shown(label)}` cannot be attached here", [f"it {one}" for one in obstacles])

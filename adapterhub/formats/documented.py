"""Value types that are `--json` documents themselves: their fields are the keys, in the same order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, ClassVar


class Documented:
    """Gives a dataclass `to_json`, and its type to the reference.

    `class Match(Documented, keys="name path=folder")` has two keys, in this order; `path` is the attribute `folder`,
    which may be a property or lead further (`kind=layout.kind`). A key with a `?` is left out while its attribute is
    None (`tests?`). Without `keys`, every field is a key. `title` is the
    name of the type in the reference, where that is not the class's. There, `Annotated[str, "…"]` describes a field,
    and its docstring a property.
    """

    __slots__ = ()
    document_keys: ClassVar[str] = ""
    document_title: ClassVar[str] = ""

    def __init_subclass__(cls, *, keys: str = "", title: str = "") -> None:
        if keys or title:  # `dataclass(slots=True)` makes the class once more, without them
            cls.document_keys, cls.document_title = keys, title

    @classmethod
    def document_attributes(cls) -> dict[str, str]:
        """Return the attribute of each key."""
        words = cls.document_keys.replace("?", "").split() or [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return {key: attribute or key for key, _, attribute in (word.partition("=") for word in words)}

    @classmethod
    def document_optional(cls) -> set[str]:
        """Return the keys that are left out while their attribute is None."""
        return {word.partition("?")[0] for word in cls.document_keys.split() if "?" in word}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value; every key is always present, but for those with a `?`."""
        found = {key: json_value(_attribute(self, path)) for key, path in self.document_attributes().items()}
        for key in self.document_optional():
            if found[key] is None:
                del found[key]
        return found


def json_value(value: object) -> Any:
    """Return the JSON value of a document's member: paths and specs as text, a member of an enumeration as its name."""
    if isinstance(value, Documented):
        return value.to_json()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): json_value(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [json_value(one) for one in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _attribute(value: object, path: str) -> object:
    """Return the target of `allowed.version`; None without `allowed`."""
    for name in path.split("."):
        if value is None:
            return None
        value = getattr(value, name)
    return value

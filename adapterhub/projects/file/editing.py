"""Edits `adapters.toml` and keeps everything else in it: order, comments, spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from adapterhub.core.disk.files import write_durably
from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE
from adapterhub.core.disk.output_place import output_place
from adapterhub.core.errors import Conflict, NotAllowed, NotFound, shown
from adapterhub.core.specs import AdapterName, BaseSpec
from adapterhub.formats.documents import near_name
from adapterhub.projects.file.reading import parse_project, project_bytes, wanted_spec
from adapterhub.projects.values import AdapterRequirement, Project

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import Table

_START: Final = """\
[project]{base}

# Adapters by name. `adapt install NAME --save` adds them here, `adapt lock` chooses versions, `adapt sync` brings them.
[adapters]
# legal-qa = ">=1.2,<2"
# summarize = {{ spec = "acme/summarize~=1.0", rank = "-16" }}
"""
_NO_BASE: Final = '\n# base = "base-7b"   the base model that all adapters of this project are for'


TomlItem = Any
"""Text or a table, as tomlkit has them."""


def new_project_text(base: BaseSpec | None = None) -> str:
    """The text of a new project file."""
    import tomlkit

    return _START.format(base=f"\nbase = {tomlkit.item(base.text).as_string()}" if base else _NO_BASE)


def create_project(folder: Path, base: BaseSpec | None = None) -> Project:
    """Create a project in `folder`.

    Raises:
        Conflict: it already is a project.
        NotAllowed: it cannot be written, or it is inside a library.
    """
    path = folder / PROJECT_FILE
    output_place(path)
    if path.exists() or path.is_symlink():
        hint = "edit it, or name another folder"
        raise Conflict(f"`{shown(str(folder), 200)}` already has an `{PROJECT_FILE}`. It was not changed", hint=hint)
    return write_project(folder, new_project_text(base))


def project_of(text: str, folder: Path) -> Project:
    """Parse the text of a project file of `folder` that is not written yet."""
    return parse_project(text.encode(), folder, str(folder / PROJECT_FILE))


# ---------------------------------------------------------------- text to text
def with_adapter(text: str, wanted: AdapterRequirement) -> str:
    """The text with this adapter in it; an older entry of the name is replaced, in whichever table it is.

    Raises:
        Conflict: a merge has the name.
    """
    document, line_end = _parsed(text)
    if wanted.key in document.get("merges", {}):
        raise Conflict(
            f"`{wanted.key}` is a merge of this project. Nothing was changed",
            hint=f"`adapt remove {wanted.key} --save` removes it; or choose another name",
        )
    table = _holder(document, wanted.group)
    for other in _tables(document):
        if other is not table and wanted.key in other:
            del other[wanted.key]
    _put(table, wanted.key, _entry(wanted))
    return document.as_string().replace("\n", line_end)


def with_alias(text: str, key: AdapterName, name: str, weights: Mapping[str, float]) -> str:
    """The text in which the alias `name` of the adapter `key` means these versions."""
    import tomlkit

    document, line_end = _parsed(text)
    if "aliases" not in document:
        document["aliases"] = tomlkit.table(is_super_table=True)
    aliases = cast("Table", document["aliases"])
    if key not in aliases:
        aliases[key] = tomlkit.table()
    entry: TomlItem = next(iter(weights))
    if len(weights) > 1:
        entry = tomlkit.inline_table()
        entry.update(weights)
    _put(cast("Table", aliases[key]), AdapterName(name), entry)
    return document.as_string().replace("\n", line_end)


def without_adapters(text: str, keys: Sequence[AdapterName]) -> str:
    """The text without these adapters or merges.

    Raises:
        NotFound: the project has none of that name.
        Conflict: merges are made of it.
    """
    project = parse_project(text.encode(), Path(), PROJECT_FILE)
    known = [wanted.key for wanted in project.requirements]
    for key in keys:
        if key not in known:
            near = near_name(key, known)
            raise NotFound(f"the project has no `{shown(key)}`{near}", hint=f"`{PROJECT_FILE}` lists all names")
        users = [
            merge.key
            for merge in project.merges
            if merge.key not in keys and any(leaf.spec == key for leaf in merge.step.leaves())
        ]
        if users:
            together = " ".join([*users, *keys])
            raise Conflict(
                f"`{key}` is part of {', '.join(f'`{user}`' for user in users)}. Nothing was changed",
                hint=f"`adapt remove {together} --save` removes all of them; or remove `{key}` from the recipe",
            )
    document, line_end = _parsed(text)
    for table in (*_tables(document), document.get("merges", {}), document.get("aliases", {})):
        for key in keys:
            if key in table:
                del table[key]
    return document.as_string().replace("\n", line_end)


def _parsed(text: str) -> tuple[TOMLDocument, str]:
    """The document with Unix line ends, and the line end of the text."""
    import tomlkit

    return tomlkit.parse(text.replace("\r\n", "\n")), "\r\n" if "\r\n" in text else "\n"


def _put(table: TomlItem, key: AdapterName, entry: TomlItem) -> None:
    """Set `key`. A new key goes after the last one, before blank lines and comments of the next table."""
    from tomlkit.items import Table

    if key in table or type(table) is not Table or any(isinstance(item, Table) for _, item in table.value.body):
        table[key] = entry  # in place, or before nested tables, which tomlkit handles
        return
    body = table.value.body
    end = max((at + 1 for at, (one, _) in enumerate(body) if one is not None), default=None)
    if end is None:  # an empty table owns its comments up to the last blank line
        end = max((at for at, (_, item) in enumerate(body) if not item.as_string().strip()), default=len(body))
    held = body[end:]
    del body[end:]
    table[key] = entry
    body.extend(held)


def _entry(wanted: AdapterRequirement) -> TomlItem:
    """The shortest form that reads as `wanted`."""
    import tomlkit

    text = str(wanted.spec)
    if wanted.spec.namespace is None and wanted.spec.name == wanted.key:
        short = text.removeprefix(wanted.key)
        text = short or "*"
    assert wanted_spec(wanted.key, text) == wanted.spec
    written = wanted.ranks.written
    more: dict[str, int | str] = {"rank": int(written) if written.isdigit() else written} if written else {}
    more |= {} if wanted.remote is None else {"remote": wanted.remote}
    if not more:
        return text
    table = tomlkit.inline_table()
    table.update({"spec": text, **more})
    return table


def _holder(document: TOMLDocument, group: str | None) -> Table:
    """`[adapters]` or `[groups.GROUP]`, created if missing."""
    import tomlkit

    if group is None:
        if "adapters" not in document:
            document["adapters"] = tomlkit.table()
        return cast("Table", document["adapters"])
    if "groups" not in document:
        document["groups"] = tomlkit.table(is_super_table=True)
    groups = cast("Table", document["groups"])
    if group not in groups:
        groups[group] = tomlkit.table()
    return cast("Table", groups[group])


def _tables(document: TOMLDocument) -> list[Any]:
    """Every table that holds adapters."""
    return [document.get("adapters", {}), *document.get("groups", {}).values()]


# ---------------------------------------------------------------- files
def text_of_project(folder: Path) -> str:
    """The text of the project file.

    Raises:
        NotFound: there is no project file.
    """
    raw = project_bytes(folder)
    parse_project(raw, folder, str(folder / PROJECT_FILE))  # raises if it is not a valid project in UTF-8
    return raw.decode("utf-8")


def write_project(folder: Path, text: str) -> Project:
    """Write a whole project file atomically, if it is valid."""
    project = project_of(text, folder)
    path = folder / PROJECT_FILE
    output_place(folder / LOCK_FILE)  # which is written next: both or neither
    try:
        write_durably(output_place(path), text.encode())
    except OSError as error:
        raise NotAllowed(f"`{shown(str(path), 200)}` cannot be written: {error.strerror}. It is unchanged") from error
    return project

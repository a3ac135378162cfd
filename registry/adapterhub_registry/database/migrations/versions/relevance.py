"""What the builds say of themselves, and the index of it for searches by relevance."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, ForeignKey, Integer, Text, inspect, text

from adapterhub.formats.relevance import wording_of, words_of
from adapterhub_registry.database.search_tables import add_stems

revision = "0014"
down_revision = "0013"

_BATCH = 1000


def upgrade() -> None:
    """Add the table, fill it from the builds that represent their repositories, and index it."""
    connection = op.get_bind()
    if "examples" not in {column["name"] for column in inspect(connection).get_columns("adapters")}:
        op.add_column("adapters", Column("examples", Text))
    op.drop_table("wordings", if_exists=True)
    said = [Column(name, Text, nullable=False) for name in ("name", "task", "description", "prompts", "body")]
    key = Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True)
    wordings = op.create_table("wordings", key, *said)
    shown = text(
        "SELECT r.id, r.full_name, a.name, a.task, a.description FROM repos r JOIN adapters a ON a.repo_id = r.id"
        " WHERE r.id > :last AND (a.is_listed OR (a.is_head AND NOT EXISTS"
        " (SELECT 1 FROM adapters l WHERE l.repo_id = r.id AND l.is_listed))) ORDER BY r.id LIMIT :most"
    )
    last = 0
    while rows := connection.execute(shown, {"last": last, "most": _BATCH}).all():
        last = rows[-1].id
        connection.execute(wordings.insert(), [_row(*row) for row in rows])
    add_stems(connection)


def _row(number: int, full_name: str, name: str | None, task: str | None, description: str | None) -> dict[str, object]:
    named = full_name if name in {None, full_name.partition("/")[2]} else f"{full_name} {name}"
    wording = wording_of(named, task or "", description or "")
    return {"repo_id": number, **wording._asdict(), "body": " ".join(words_of(" ".join(wording)))}

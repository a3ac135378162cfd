"""Tokens: whom one stands for, how long, what it reaches, and what is written down of it."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from adapterhub_registry.access import tokens as tokens_module
from adapterhub_registry.access.callers import ANONYMOUS, SCOPES, Caller, Role
from adapterhub_registry.access.tokens import DAY_MS, Tokens
from adapterhub_registry.database.db import Database, tokens, users
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError

from adapterhub.core.errors import NotFound, UsageProblem
from adapterhub.formats.administration import Token

NOW = 1_700_000_000_000
MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('tokens') / 'registry.db'}")
    yield database
    database.close()


@pytest.fixture
def database(shared: Database) -> Database:
    """A database without tokens."""
    with shared.begin() as connection:
        connection.execute(tokens.delete())
        connection.execute(users.delete())
    return shared


@pytest.fixture
def made(database: Database) -> Tokens:
    return Tokens(database)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the server sees; a test sets `now`."""
    clock = SimpleNamespace(now=NOW)
    monkeypatch.setattr(tokens_module, "now_ms", lambda: clock.now)
    return clock


def rows(database: Database, table: Any) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(select(table).order_by(table.c.id)).mappings()]


# ---------------------------------------------------------------- callers
@pytest.mark.parametrize(
    ("globs", "repo", "reached"),
    [
        (("ann/*",), "ann/x", True),
        (("ann/*",), "ann/", True),
        (("ann/*",), "anna/x", False),
        (("ann/*",), "bob/x", False),
        (("ann/*",), "Ann/x", False),
        (("ann/X*",), "ann/x1", False),
        (("ann/x",), "ann/x", True),
        (("ann/x",), "ann/xy", False),
        (("a?n/x",), "abn/x", True),
        (("bob/*", "ann/*"), "ann/x", True),
        (("bob/*", "ann/*"), "eve/x", False),
        (("*",), "ann/x", True),
        (("*/*",), "ann/x", True),
        ((), "ann/x", False),
    ],
)
@pytest.mark.parametrize(("role", "changes"), [("read", False), ("write", True), ("admin", True)])
def test_a_token_reaches_its_namespaces_and_changes_them_unless_it_only_reads(
    globs: tuple[str, ...], repo: str, role: Role, *, reached: bool, changes: bool
) -> None:
    caller = Caller(user="ann", role=role, namespaces=globs)

    assert caller.reaches(repo) is reached
    assert caller.writes(repo) is (reached and changes)


@pytest.mark.parametrize(
    ("role", "globs", "admin", "sees_all"),
    [
        ("admin", ("*",), True, True),
        ("admin", ("ann/*", "*"), True, True),
        ("admin", ("*/*",), False, True),
        ("admin", ("ann/*",), False, False),
        ("admin", (), False, False),
        ("write", ("*",), False, True),
        ("write", ("ann/*", "*/*"), False, True),
        ("read", ("*",), False, True),
        ("read", ("ann/*",), False, False),
        ("read", (), False, False),
    ],
)
def test_only_an_admin_token_for_everything_does_everything(
    role: Role, globs: tuple[str, ...], *, admin: bool, sees_all: bool
) -> None:
    caller = Caller(user="ann", role=role, namespaces=globs)

    assert caller.is_admin is admin
    assert caller.sees_all is sees_all


def test_a_caller_without_a_token_has_no_rights() -> None:
    assert Caller(user=None, role="read", namespaces=(), label="", token_id=None) == ANONYMOUS
    assert [ANONYMOUS.reaches("ann/x"), ANONYMOUS.writes("ann/x"), ANONYMOUS.is_admin, ANONYMOUS.sees_all] == [
        False
    ] * 4


# ---------------------------------------------------------------- making
def test_a_token_has_160_random_bits_and_check_digits(made: Tokens) -> None:
    one, other = made.create("ann", "read"), made.create("ann", "read")

    assert re.fullmatch(r"hf_adp_[a-z2-7]{32}_[0-9a-f]{8}", one)
    assert one[40:] == f"{zlib.crc32(one[7:39].encode()):08x}"
    assert one[:39] != other[:39]


def test_only_the_digest_of_a_token_is_kept(database: Database, made: Tokens) -> None:
    token = made.create("ann", "read").removeprefix("hf_")

    (row,) = rows(database, tokens)
    assert row["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert not any(token[4:36] in str(value) for value in row.values())


@pytest.mark.parametrize(
    ("role", "given", "kept"),
    [
        ("read", (), ("ann/*",)),
        ("write", (), ("ann/*",)),
        ("admin", (), ("*",)),
        ("admin", ("acme",), ("acme/*",)),
        ("write", ("acme", "bob/x", "*", "eve/*"), ("acme/*", "bob/x", "*", "eve/*")),
        ("read", ("ac?me-_.*",), ("ac?me-_.*/*",)),
    ],
)
def test_a_token_is_given_for_a_users_own_namespace_or_for_those_named(
    made: Tokens, role: str, given: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    token = made.create("ann", role, namespaces=given)

    caller = made.authenticate(token)
    (record,) = made.records()
    assert caller == Caller(user="ann", role=record.role, namespaces=kept, label=f"ann-{role}", token_id=record.id)
    assert (record.role, record.namespaces) == (role, kept)


@pytest.mark.parametrize("user", ["", "-ann", ".ann", "ann/x", "an n", "é", "*", "a" * 97, "ann\n"])
def test_a_user_that_cannot_be_gets_no_token(made: Tokens, user: str) -> None:
    with pytest.raises(UsageProblem, match="user `"):
        made.create(user, "read")
    assert made.records() == []


@pytest.mark.parametrize("user", ["a", "9", "Ann_B-c.d", "a" * 96])
def test_a_user_is_named_as_it_was_given(made: Tokens, user: str) -> None:
    caller = made.authenticate(made.create(user, "write"))

    assert caller is not None
    assert (caller.user, caller.namespaces) == (user, (f"{user}/*",))


@pytest.mark.parametrize("role", ["", "Read", "owner", "read "])
def test_an_unknown_role_gets_no_token_and_the_refusal_names_all_roles(made: Tokens, role: str) -> None:
    with pytest.raises(UsageProblem, match="expected one of read, write, admin"):
        made.create("ann", role)
    assert made.records() == []


@pytest.mark.parametrize("glob", ["", "/", "a/", "/a", "a/b/c", "a b", "a[b]", "é", "a" * 97, "a/" + "b" * 97, "a\n"])
def test_a_pattern_that_no_namespace_has_is_refused(made: Tokens, glob: str) -> None:
    with pytest.raises(UsageProblem, match="namespace `"):
        made.create("ann", "read", namespaces=["acme", glob])
    assert made.records() == []


@pytest.mark.parametrize("days", [0, -1, 36_500.1, float("nan")])
def test_a_time_that_no_token_lives_is_refused(made: Tokens, days: float) -> None:
    with pytest.raises(UsageProblem, match="at most 36500"):
        made.create("ann", "read", days=days)
    assert made.records() == []


@pytest.mark.parametrize(
    ("days", "end"),
    [(None, None), (1, NOW + DAY_MS), (0.5, NOW + DAY_MS // 2), (36_500, NOW + 36_500 * DAY_MS), (1e-9, NOW)],
)
def test_a_token_ends_so_many_days_after_it_was_made(made: Tokens, days: float | None, end: int | None) -> None:
    made.create("ann", "read", days=days)

    (record,) = made.records()
    assert (record.created_at, record.expires_at) == (NOW, end)


def test_a_user_is_written_once_and_case_tells_users_apart(
    database: Database, made: Tokens, clock: SimpleNamespace
) -> None:
    first = made.create("ann", "write")
    clock.now += 1
    made.create("ann", "read")
    other = made.create("Ann", "write")

    assert [(row["name"], row["created_at"]) for row in rows(database, users)] == [("ann", NOW), ("Ann", NOW + 1)]
    assert [record.user for record in made.records()] == ["ann", "ann", "Ann"]
    callers = [made.authenticate(token) for token in (first, other)]
    assert [caller and caller.reaches("ann/x") for caller in callers] == [True, False]


def test_tokens_of_one_user_are_made_one_after_the_other(made: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[str | None] = []
    monkeypatch.setattr(tokens_module, "lock_name", lambda _connection, name: locked.append(name))
    for user in ("ann", "bob", "ann"):
        made.create(user, "read")
    made.create_first()

    ann, bob, again, first = locked
    assert ann == again
    assert len({ann, bob, first, None}) == 4


# ---------------------------------------------------------------- the first one
def test_the_first_token_is_an_administrators(made: Tokens) -> None:
    token = made.create_first()

    assert token is not None
    (record,) = made.records()
    assert record == Token(
        id=record.id,
        user="admin",
        label="first start",
        role="admin",
        namespaces=("*",),
        created_at=NOW,
        expires_at=None,
        used_at=None,
        revoked_at=None,
        scopes=SCOPES,
    )
    caller = made.authenticate(token)
    assert caller == Caller(user="admin", role="admin", namespaces=("*",), label="first start", token_id=record.id)


@pytest.mark.parametrize("before", ["first", "read", "revoked", "expired"])
def test_there_is_no_second_first_token(made: Tokens, clock: SimpleNamespace, before: str) -> None:
    if before == "first":
        made.create_first()
    else:
        made.create("ann", "read", days=1)
    if before == "revoked":
        made.revoke(made.records()[0].id)
    clock.now += DAY_MS * (2 if before == "expired" else 0)

    assert made.create_first() is None
    assert len(made.records()) == 1


# ---------------------------------------------------------------- listing, revoking
def test_records_list_every_token_oldest_first(made: Tokens, clock: SimpleNamespace) -> None:
    made.create("bob", "write", label="laptop", days=2)
    clock.now += 5
    token = made.create("ann", "read", namespaces=["acme", "eve/x"])
    clock.now += 5
    made.authenticate(token)
    made.flush()
    made.revoke(made.records()[0].id)

    bob, ann = made.records()
    assert bob.id < ann.id
    assert bob == Token(
        id=bob.id,
        user="bob",
        label="laptop",
        role="write",
        namespaces=("bob/*",),
        created_at=NOW,
        expires_at=NOW + 2 * DAY_MS,
        used_at=None,
        revoked_at=NOW + 10,
        scopes=("read", "write", "release"),
    )
    assert ann == Token(
        id=ann.id,
        user="ann",
        label="ann-read",
        role="read",
        namespaces=("acme/*", "eve/x"),
        created_at=NOW + 5,
        expires_at=None,
        used_at=NOW + 10,
        revoked_at=None,
        scopes=("read",),
    )


def test_a_revoked_token_opens_nothing_and_the_others_go_on(made: Tokens, clock: SimpleNamespace) -> None:
    kept, gone, later = (made.create(user, "read") for user in ("ann", "bob", "eve"))
    before = made.records()
    clock.now += 1

    revoked = made.revoke(before[1].id)

    assert (revoked.id, revoked.user, revoked.revoked_at) == (before[1].id, "bob", NOW + 1)
    assert [record.revoked_at for record in made.records()] == [None, NOW + 1, None]
    assert [made.authenticate(token) is None for token in (kept, gone, later)] == [False, True, False]


def test_a_token_that_is_revoked_again_keeps_its_first_time(made: Tokens, clock: SimpleNamespace) -> None:
    made.create("ann", "read")
    number = made.records()[0].id
    first = made.revoke(number)
    clock.now += 1

    assert made.revoke(number) == first
    assert first.revoked_at == NOW


def test_an_unknown_number_revokes_nothing(made: Tokens) -> None:
    made.create("ann", "read")
    number = made.records()[0].id + 1

    with pytest.raises(NotFound, match=f"no token {number}") as refused:
        made.revoke(number)
    assert refused.value.hint == "list the tokens: `adapt registry token list`"
    assert made.records()[0].revoked_at is None


# ---------------------------------------------------------------- opening
def test_a_token_stands_for_its_own_user_among_others(made: Tokens) -> None:
    given = {user: made.create(user, "read") for user in ("ann", "bob", "eve")}

    callers = {user: made.authenticate(token) for user, token in given.items()}

    assert {user: caller and caller.user for user, caller in callers.items()} == {user: user for user in given}


@pytest.mark.parametrize(("after", "good"), [(0, True), (DAY_MS - 1, True), (DAY_MS, False), (DAY_MS + 1, False)])
def test_a_token_opens_nothing_from_its_end_on(made: Tokens, clock: SimpleNamespace, after: int, *, good: bool) -> None:
    token = made.create("ann", "read", days=1)
    clock.now += after

    assert (made.authenticate(token) is not None) is good


def test_a_token_without_an_end_goes_on(made: Tokens, clock: SimpleNamespace) -> None:
    token = made.create("ann", "read")
    clock.now *= 2

    assert made.authenticate(token) is not None


def test_a_token_works_with_and_without_the_prefix_of_the_hub(database: Database, made: Tokens) -> None:
    token = made.create("ann", "read")
    earlier = token.removeprefix("hf_")
    with database.read() as connection:  # as an earlier version kept it
        kept = connection.scalars(select(tokens.c.sha256)).one()

    assert kept == hashlib.sha256(earlier.encode()).hexdigest()
    assert made.authenticate(token) is not None
    assert made.authenticate(earlier) == made.authenticate(token)
    assert made.authenticate(f"hf_{token}") is None


def test_what_is_not_exactly_the_token_opens_nothing(made: Tokens) -> None:
    token = made.create("ann", "read").removeprefix("hf_")
    flipped = "b" if token[4] == "a" else "a"
    random = f"{flipped}{token[5:36]}"
    wrong_digit = "0" if token[-1] != "0" else "1"
    others = [
        "",
        "adp_",
        token.upper(),
        f" {token}",
        f"{token} ",
        f"{token}\n",
        token[:-1],
        f"{token}0",
        token.replace("adp_", "hf__"),
        f"adp_{random}{token[36:]}",  # wrong check digits
        f"adp_{random}_{zlib.crc32(random.encode()):08x}",  # right ones, of a token that was never made
        f"{token[:-1]}{wrong_digit}",
        hashlib.sha256(token.encode()).hexdigest(),
        f"{token[:36]}é{token[37:]}",
    ]

    assert [made.authenticate(other) for other in others] == [None] * len(others)
    assert made.records()[0].used_at is None


def test_wrong_check_digits_are_refused_whatever_the_database_holds(database: Database, made: Tokens) -> None:
    token = made.create("ann", "read").removeprefix("hf_")
    typo = f"{token[:-1]}{'0' if token[-1] != '0' else '1'}"
    with database.begin() as connection:
        connection.execute(update(tokens).values(sha256=hashlib.sha256(typo.encode()).hexdigest()))

    assert made.authenticate(typo) is None


def test_the_last_use_is_noted_at_most_once_a_minute_and_for_this_token_only(
    made: Tokens, clock: SimpleNamespace
) -> None:
    token = made.create("ann", "read")
    made.create("ann", "read")
    used = []
    for after in (0, 1, MINUTE_MS, MINUTE_MS + 1, MINUTE_MS + 2, 2 * MINUTE_MS + 1):
        clock.now = NOW + after
        made.authenticate(token)
        made.flush()
        used.append([record.used_at for record in made.records()])

    late = NOW + MINUTE_MS + 1
    assert used == [[NOW, None]] * 3 + [[late, None]] * 3


def test_many_requests_write_the_last_use_once_and_a_failure_leaves_it_for_the_next_time(
    shared: Database, made: Tokens, clock: SimpleNamespace
) -> None:
    token, written = made.create("ann", "read"), []

    def count(_connection: Any, _cursor: Any, statement: str, *_more: object) -> None:
        if statement.startswith("UPDATE tokens"):
            written.append(statement)

    def refuse_writes(connection: Any) -> None:
        connection.exec_driver_sql("PRAGMA query_only=ON")

    for _ in range(50):
        clock.now += 10
        made.authenticate(token)
    event.listen(shared.engine, "begin", refuse_writes)
    try:
        with pytest.raises(OperationalError):
            made.flush()
    finally:
        event.remove(shared.engine, "begin", refuse_writes)
        shared.engine.dispose()
    event.listen(shared.engine, "before_cursor_execute", count)
    for _ in range(50):
        made.authenticate(token)
        made.flush()
    event.remove(shared.engine, "before_cursor_execute", count)

    assert made.records()[0].used_at == NOW + 10
    assert len(written) == 1


def test_a_database_that_takes_no_writes_does_not_stop_readers(shared: Database, made: Tokens) -> None:
    token = made.create("ann", "read")

    def refuse_writes(connection: Any) -> None:
        connection.exec_driver_sql("PRAGMA query_only=ON")

    event.listen(shared.engine, "begin", refuse_writes)
    try:
        caller = made.authenticate(token)
    finally:
        event.remove(shared.engine, "begin", refuse_writes)
        shared.engine.dispose()  # the setting stays with a connection

    assert caller is not None
    assert caller.user == "ann"
    assert made.records()[0].used_at == NOW  # noted in memory, until it can be written

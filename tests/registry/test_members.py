"""Members and teams of namespaces: what a person's tokens do with each role, and what ends, all of it, with a removal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from adapterhub_registry.access.audit import LogSearch, entries
from adapterhub_registry.access.callers import ANONYMOUS, SCOPES, Caller, Right, covers
from adapterhub_registry.access.members import Held, Members
from adapterhub_registry.access.tokens import SESSION, Tokens, open_session, row_of, working
from adapterhub_registry.database.db import Database, tokens
from sqlalchemy import select

from adapterhub.core.errors import Conflict, NotAllowed, NotFound, UsageProblem
from tests.registry.shared_servers import Postgres

RIGHTS: tuple[Right, ...] = ("read", "write", "release", "manage", "administer")


BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if getattr(request, "param", "sqlite") == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('members') / 'registry.db'}"
    else:
        pg: Postgres = request.getfixturevalue("pg")
        url = pg.new_registry().replace("postgresql://", "postgresql+psycopg://")
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def held(database: Database) -> Members:
    """Members, with the users ann and ben."""
    for user in ("ann", "ben"):
        Tokens(database).create(user, "read")
    return Members(database)


def session(database: Database, user: str) -> int:
    with database.begin() as connection:
        return open_session(connection, user, lasts_s=3600, label="signed in")


def caller(database: Database, user: str) -> Caller:
    found = Tokens(database).caller_numbered(session(database, user))
    assert found is not None
    return found


def rights(who: Caller, repo: str) -> list[str]:
    return [right for right in RIGHTS if who.reaches(repo, right)]


def test_each_role_of_a_member_includes_those_before_it_in_all_repositories_of_the_namespace(
    database: Database, held: Members
) -> None:
    found = {}
    for role in SCOPES:
        held.add("acme", "ann", role=role)
        found[role] = rights(caller(database, "ann"), "acme/x")

    assert found == {
        "read": ["read"],
        "write": ["read", "write"],
        "release": ["read", "write", "release"],
        "administer": list(RIGHTS),
    }
    assert rights(caller(database, "ann"), "acmeX/x") == rights(caller(database, "ben"), "acme/x") == []
    assert [(one.user, one.role) for one in held.records("acme")] == [("ann", "administer")]


@BOTH
def test_a_team_gives_its_role_in_its_repositories_only(database: Database, held: Members) -> None:
    held.put_team("acme", "legal", "release", ["legal-*", "qa"])
    held.add("acme", "ann", team="legal")
    held.add("acme", "ann", role="read")

    who = caller(database, "ann")

    assert rights(who, "acme/legal-de") == rights(who, "acme/qa") == ["read", "write", "release"]
    assert rights(who, "acme/other") == ["read"]
    held.put_team("acme", "legal", "read", ["qa"])
    assert rights(caller(database, "ann"), "acme/legal-de") == ["read"]
    held.leave_team("acme", "ann", "legal")
    held.add("acme", "ben", team="legal")
    held.remove_team("acme", "legal")
    assert rights(caller(database, "ben"), "acme/qa") == []
    assert held.of("ben") == []


def test_a_membership_ends_at_its_time_and_that_in_a_team_with_it(
    database: Database, held: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.put_team("acme", "legal", "write")
    held.add("acme", "ann", role="read", days=1 / 1440)
    held.add("acme", "ann", team="legal")
    held.add("acme", "ben", team="legal", days=1 / 1440)
    numbers = [session(database, user) for user in ("ann", "ben")]
    ends = held.of("ann")[0].expires_at
    assert ends is not None

    def found() -> list[list[str]]:
        callers = [Tokens(database).caller_numbered(number) for number in numbers]
        return [rights(one, "acme/x") for one in callers if one is not None]

    assert found() == [["read", "write"], ["read", "write"]]
    monkeypatch.setattr("adapterhub_registry.access.tokens.now_ms", lambda: int(ends) + 60_000)
    assert found() == [[], []]


@BOTH
def test_an_issuer_gives_exactly_what_its_groups_say_beside_what_someone_added(
    database: Database, held: Members
) -> None:
    held.put_team("acme", "legal", "write")
    held.add("acme", "ann", role="read")
    wanted = [Held(namespace="acme", role="administer"), Held(namespace="acme", team="legal")]

    held.set_from("ann", "https://id", [*wanted, Held(namespace="acme", team="unknown")])
    assert rights(caller(database, "ann"), "acme/x") == list(RIGHTS)
    with database.read() as connection:
        before = len(entries(connection, LogSearch()))
    held.set_from("ann", "https://id", wanted)
    held.set_from("new", "https://id", [Held(namespace="*", role="administer")])

    assert caller(database, "new").is_admin
    with database.read() as connection:
        told = [one.subject for one in entries(connection, LogSearch())[before:]]
    assert told == ["new: administer in *"]  # what stays is logged once
    held.set_from("ann", "https://id", [])
    assert [(one.team, one.role, one.source) for one in held.of("ann")] == [("", "read", "")]
    held.remove("*", "ann")
    with pytest.raises(NotAllowed, match="was removed"):
        held.set_from("ann", "https://id", wanted)


@BOTH
def test_a_token_of_a_person_does_what_its_scopes_its_reach_and_the_person_may(
    database: Database, held: Members
) -> None:
    made = Tokens(database)
    held.add("acme", "ann", role="release")
    held.add("other", "ann", role="administer")
    signed_in = caller(database, "ann")

    token = made.create_own(signed_in, scopes=["read", "release", "administer"], namespaces=["acme/qa", "other"])

    who = made.authenticate(token)
    assert who is not None
    assert [rights(who, repo) for repo in ("acme/qa", "acme/x", "other/x")] == [
        ["read", "release"], [], ["read", "release", "manage", "administer"]
    ]  # fmt: skip
    assert (who.role, who.only_reads, who.spaces) == ("admin", False, ["acme", "other"])
    assert who.owns("other", "administer")
    assert not who.owns("other", "write")
    held.remove("other", "ann")
    later = made.authenticate(token)
    assert later is not None
    assert rights(later, "other/x") == []
    assert rights(later, "acme/qa") == ["read", "release"]


def test_a_token_makes_none_that_does_more_or_lasts_longer(database: Database, held: Members) -> None:
    made = Tokens(database)
    held.add("acme", "ann", role="administer")
    signed_in = caller(database, "ann")
    first = made.authenticate(made.create_own(signed_in, scopes=["write"], namespaces=["acme/a*"], days=2))
    assert first is not None

    for given in (
        {"scopes": ["release"]},
        {"namespaces": ["acme"]},
        {"namespaces": ["acme/*a"]},
        {"namespaces": ["*"]},
    ):
        with pytest.raises(NotAllowed, match="cannot create"):
            made.create_own(first, **given)  # type: ignore[arg-type]
    made.create_own(first, namespaces=["acme/ab*"], days=90)

    parent, child = made.records(user="ann")[-2:]
    assert child.expires_at == parent.expires_at
    assert (child.namespaces, child.scopes, child.own) == (("acme/ab*",), ("read",), True)
    made.revoke(parent.id)
    with pytest.raises(NotAllowed, match="is over"):
        made.create_own(first)
    with pytest.raises(NotAllowed):
        made.create_own(ANONYMOUS)
    with pytest.raises(UsageProblem, match="scope"):
        made.create_own(signed_in, scopes=["admin"])


@pytest.mark.parametrize(
    ("globs", "wanted", "covered"),
    [
        (["acme/*"], "acme/x*", True),
        (["acme/*"], "acme/?", True),
        (["acme/?"], "acme/*", False),
        (["acme/??"], "acme/*", False),
        (["acme/a*"], "acme/*a", False),
        (["a.me/*"], "acme/x", False),
        (["*"], "acme/x", True),
        (["acme/x"], "acme/x", True),
        ([], "acme/x", False),
    ],
)
def test_a_glob_covers_another_only_if_it_matches_all_that_the_other_does(
    globs: list[str], wanted: str, *, covered: bool
) -> None:
    assert covers(globs, wanted) is covered


def test_an_earlier_server_grants_nothing_to_the_token_of_a_person_or_of_fewer_scopes(
    database: Database, held: Members
) -> None:
    held.add("acme", "ann", role="administer")
    made = Tokens(database)
    made.create_own(caller(database, "ann"), scopes=SCOPES, namespaces=["acme"])
    made.create("ann", "admin", namespaces=["acme"], scopes=["write"])

    with database.read() as connection:
        rows = connection.execute(
            select(tokens.c.role, tokens.c.namespaces).order_by(tokens.c.id.desc()).limit(3)
        ).all()
    assert [tuple(row) for row in rows] == [("read", '["acme/*"]'), ("read", "[]"), ("read", "[]")]


def test_a_token_and_all_memberships_are_one_statement(database: Database, held: Members) -> None:
    for at in range(30):
        held.add(f"space-{at}", "ann", role="read")
    token = Tokens(database).create_own(caller(database, "ann"))
    asked: list[str] = []

    with database.read() as connection:
        driver: Any = connection.connection.dbapi_connection
        driver.set_trace_callback(asked.append)
        who = working(row_of(connection, token))
        driver.set_trace_callback(None)

    assert who is not None
    assert who.memberships is not None
    assert len(who.memberships) == 30
    assert len(asked) == 1


# ---------------------------------------------------------------- invitations
@BOTH
def test_an_invitation_makes_one_new_user_a_member_and_works_once(database: Database, held: Members) -> None:
    made = held.invite("acme", role="write", days=1)

    done = held.accept(made.code, ANONYMOUS, name="cara")

    assert (done.user, done.namespace) == ("cara", "acme")
    who = Tokens(database).authenticate(str(done.token))
    assert who is not None
    assert rights(who, "acme/x") == ["read", "write"]
    for name in ("cara", "dan"):
        with pytest.raises(NotFound, match="no such invitation"):
            held.accept(made.code, ANONYMOUS, name=name)
    (record,) = held.invitations("acme")
    assert record.used_by == "cara"


def test_an_invitation_ends_with_its_time_its_withdrawal_and_its_team(
    held: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.put_team("acme", "legal", "write")
    late, gone, teamless = (
        held.invite("acme", role="read"),
        held.invite("acme", role="read"),
        held.invite("acme", team="legal"),
    )
    held.withdraw("acme", gone.invitation.id)
    held.remove_team("acme", "legal")
    ends = int(late.invitation.expires_at)
    assert held.invited(late.code) is not None
    monkeypatch.setattr("adapterhub_registry.access.members.now_ms", lambda: ends)

    for one in (late, gone, teamless):
        assert held.invited(one.code) is None
        with pytest.raises(NotFound):
            held.accept(one.code, ANONYMOUS, name="cara")


def test_an_invitation_for_a_user_or_with_a_taken_name_serves_no_one_else(database: Database, held: Members) -> None:
    named, open_one = held.invite("acme", role="read", user="ben"), held.invite("acme", role="read")
    with pytest.raises(NotAllowed, match="another user"):
        held.accept(named.code, caller(database, "ann"))
    with pytest.raises(Conflict, match="sign in"):
        held.accept(open_one.code, ANONYMOUS, name="ann")
    with pytest.raises(UsageProblem):
        held.accept(open_one.code, ANONYMOUS, name="publisher:1")

    assert held.accept(named.code, caller(database, "ben")).token is None
    assert [one.user for one in held.records("acme")] == ["ben"]


# ---------------------------------------------------------------- removal
def test_a_removal_from_a_namespace_takes_it_from_every_token_and_names_those_that_reach_further(
    database: Database, held: Members
) -> None:
    made = Tokens(database)
    held.add("acme", "ann", role="administer")
    here = made.create("ann", "write", namespaces=["acme"])
    both = made.create("ann", "write", namespaces=["acme/x", "other"])
    wide = made.create("ann", "write", namespaces=["ac*"])
    own = made.create_own(caller(database, "ann"), scopes=["write"], namespaces=["acme"])
    (wide_id,) = (one.id for one in made.records(user="ann") if one.namespaces == ("ac*/*",))

    removed = held.remove("acme", "ann")

    found = [made.authenticate(token) for token in (here, both, wide, own)]
    assert [one and one.namespaces for one in found] == [None, ("other/*",), ("ac*/*",), None]
    assert removed.left == (wide_id,)
    assert removed.memberships == 1
    assert len(removed.tokens) == 3
    with pytest.raises(NotFound):
        held.remove("acme", "nobody")


@BOTH
def test_a_removal_from_the_registry_ends_all_tokens_and_sessions_until_an_administrator_grants_one(
    database: Database, held: Members
) -> None:
    made = Tokens(database)
    held.add("acme", "ann", role="administer")
    number = session(database, "ann")
    given = [made.create("ann", "write", namespaces=["ac*"]), made.create_own(caller(database, "ann"))]
    invited = held.by(caller(database, "ann").by).invite("acme", role="read")

    held.remove("*", "ann")

    assert [made.authenticate(token) for token in given] == [None, None]
    assert made.caller_numbered(number) is None
    assert held.of("ann") == []
    assert held.invited(invited.code) is None
    with pytest.raises(NotAllowed, match="was removed"), database.begin() as connection:
        open_session(connection, "ann", lasts_s=60, label="x")
    with pytest.raises(NotFound, match="no user"):
        held.add("acme", "ann", role="read")
    again = made.authenticate(made.create("ann", "read"))
    assert again is not None
    assert rights(again, "acme/x") == []


def test_a_removal_ends_an_invitation_that_names_someone_without_anything_else(held: Members) -> None:
    invited = held.invite("acme", role="read", user="ben")

    held.remove("acme", "ben")

    assert held.invited(invited.code) is None
    with pytest.raises(NotFound, match="has nothing"):
        held.remove("acme", "ben")


def test_someone_who_is_removed_after_a_request_began_accepts_nothing(database: Database, held: Members) -> None:
    invited, began = held.invite("acme", role="read"), caller(database, "ben")
    held.remove("*", "ben")

    with pytest.raises(NotAllowed, match="was removed"):
        held.accept(invited.code, began)

    assert held.records("acme") == []
    assert held.invited(invited.code) is not None


def test_no_administrator_removes_themselves_from_the_registry(database: Database, held: Members) -> None:
    with pytest.raises(NotAllowed, match="another administrator"):
        held.by(caller(database, "ann").by).remove("*", "ann")


def test_a_session_token_stands_for_the_person(database: Database, held: Members) -> None:
    held.add("acme", "ann", role="write")
    who = caller(database, "ann")

    assert (who.scopes, who.namespaces, rights(who, "acme/x")) == ((SESSION,), ("*",), ["read", "write"])
    assert not who.is_admin
    assert not who.sees_all
    held.add("*", "ann", role="administer")
    assert caller(database, "ann").is_admin

"""The tokens and users of a registry elsewhere, through its `/api/adapt/v1` and the token of an administrator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import quote

from adapterhub.core.errors import RemoteUnreachable
from adapterhub_registry.access.tokens import LogRecord, TokenRecord, UserRecord
from adapterhub_registry.operations.far import FarRegistry


class FarTokens(FarRegistry):
    """What `Tokens` does, on the registry at `url`. `token` must be an administrator's."""

    needs: ClassVar[str] = "the token of an administrator"
    hint_missing: ClassVar[str] = "`token list` and `user list` show what there is"

    def create(
        self,
        user: str,
        role: str,
        *,
        namespaces: Sequence[str] = (),
        label: str = "",
        days: float | None = None,
    ) -> str:
        """Create a token and return it, this once; raises `UsageProblem` for an invalid value."""
        body = {"user": user, "role": role, "namespaces": list(namespaces), "label": label, "days": days}
        token = self.send("POST", "tokens", body).get("token")
        if not isinstance(token, str):
            raise RemoteUnreachable(f"{self.url} sent no token; list them, and revoke what it may have created")
        return token

    def records(self) -> list[TokenRecord]:
        """Every token, oldest first, including revoked and expired ones."""
        return self.records_in(TokenRecord, self.send("GET", "tokens"), "tokens")

    def revoke(self, token_id: int) -> TokenRecord:
        """Revoke a token and return its record; raises `NotFound`."""
        return self.records_in(TokenRecord, {"tokens": [self.send("DELETE", f"tokens/{token_id}")]}, "tokens")[0]

    def users(self) -> list[UserRecord]:
        """Every user that has or had a token, by name."""
        return self.records_in(UserRecord, self.send("GET", "users"), "users")

    def revoke_user(self, name: str) -> list[TokenRecord]:
        """Revoke all tokens of a user and return the records of all; raises `NotFound`."""
        return self.records_in(TokenRecord, self.send("DELETE", f"users/{quote(name, safe='')}"), "tokens")

    def log(self) -> list[LogRecord]:
        """Every creation and revocation of a token, oldest first."""
        return self.records_in(LogRecord, self.send("GET", "log"), "entries")

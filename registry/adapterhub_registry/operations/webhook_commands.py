"""The commands `adapt registry webhook`, on the server's machine or from afar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from adapterhub.core.errors import RemoteUnreachable
from adapterhub_registry.events.outbox import TYPES
from adapterhub_registry.events.webhooks import DeliveryRecord, WebhookRecord, Webhooks
from adapterhub_registry.operations.far_options import (
    far_registry,
    local_database,
    show_rows,
    time_text,
    where_options,
)
from adapterhub_registry.operations.far_webhooks import FarWebhooks
from adapterhub_registry.operations.options import JSON, webhook_network_option
from adapterhub_registry.settings import parse_networks

_where = where_options("Owner's")
_COLUMNS = ("id", "scope", "url", "types", "owner", "created", "waiting", "failed", "silent")
_DELIVERY_COLUMNS = (
    *("id", "event", "type", "repo", "state", "attempts", "status", "problem", "created"),
    *("due", "ended"),
)


@click.group()
def webhook() -> None:
    """Send signed messages to your own server when an adapter gets a version, is yanked, or an alias moves.

    \b
    Examples:
      adapt registry webhook add acme https://hooks.example.org/adapters --url https://registry.example.org
      adapt registry webhook deliveries 3 --url https://registry.example.org
    """


@webhook.command()
@click.argument("scope")
@click.argument("receiver")
@click.option("--type", "types", multiple=True, type=click.Choice(TYPES), help="Send only these events; repeatable.")
@_where
@webhook_network_option
@JSON
def add(scope: str, receiver: str, types: tuple[str, ...], as_json: bool, **given: object) -> None:
    """Send the events of SCOPE, a namespace or a repository, to the URL RECEIVER.

    Prints the secret that signs the messages. No command can show it again.

    \b
    Example:
      adapt registry webhook add acme/legal-qa https://hooks.example.org/adapters --type version.yanked
    """
    made = _webhooks(given).add(scope, receiver, types)
    row = {"id": made.webhook.id, "scope": made.webhook.scope, "url": made.webhook.url, "secret": made.secret}
    click.echo(json.dumps(row) if as_json else f"webhook {made.webhook.id}\nsecret: {made.secret}")


@webhook.command("list")
@_where
@JSON
def list_(as_json: bool, **given: object) -> None:
    """List the webhooks that you own, with the numbers of waiting and failed deliveries.

    \b
    Example:
      adapt registry webhook list --url https://registry.example.org
    """
    show_rows([_document(record) for record in _webhooks(given).records()], _COLUMNS, as_json=as_json)


@webhook.command()
@click.argument("number", type=int)
@_where
@JSON
def remove(number: int, as_json: bool, **given: object) -> None:
    """Remove a webhook by its NUMBER in `list`, and the deliveries that wait for it.

    \b
    Example:
      adapt registry webhook remove 3 --url https://registry.example.org
    """
    record = _webhooks(given).remove(number)
    click.echo(json.dumps(_document(record)) if as_json else f"removed webhook {number} of {record.scope}")


@webhook.command()
@click.argument("number", type=int)
@_where
@webhook_network_option
@JSON
def test(number: int, as_json: bool, **given: object) -> None:
    """Send the event `webhook.test` to a webhook; exit 13 when the receiver does not accept it.

    \b
    Example:
      adapt registry webhook test 3 --url https://registry.example.org
    """
    done = _webhooks(given).test(number)
    if as_json:
        click.echo(json.dumps(_delivery(done)))
    elif done.problem is None:
        click.echo(f"delivered {done.event} ({done.status})")
    if done.problem is not None:
        raise RemoteUnreachable(
            f"webhook {number} did not get the event: {done.problem}",
            hint="the server sends to public addresses by https, follows no redirect, and waits 10 seconds",
        )


@webhook.command()
@click.argument("number", type=int)
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="Show at most this number.")
@_where
@JSON
def deliveries(number: int, limit: int, as_json: bool, **given: object) -> None:
    """Show the last deliveries of a webhook, newest first, with the answers of the receiver.

    \b
    Example:
      adapt registry webhook deliveries 3 --url https://registry.example.org
    """
    rows = [_delivery(record) for record in _webhooks(given).deliveries(number, limit=limit)]
    show_rows(rows, _DELIVERY_COLUMNS, as_json=as_json)


def _webhooks(given: Mapping[str, Any]) -> Webhooks | FarWebhooks:
    """The webhooks that the options name."""
    networks = parse_networks(tuple(given.get("webhook_networks", ())))
    return far_registry(given, FarWebhooks) or Webhooks(local_database(given), networks=networks)


def _document(record: WebhookRecord) -> dict[str, Any]:
    values = asdict(record) | {"types": ",".join(record.types), "created": time_text(record.created_at)}
    return {name: values[name] for name in _COLUMNS}


def _delivery(record: DeliveryRecord) -> dict[str, Any]:
    times = {"created": record.created_at, "due": record.due_at, "ended": record.ended_at}
    values = asdict(record) | {name: time_text(value) for name, value in times.items()}
    return {name: values[name] for name in _DELIVERY_COLUMNS}

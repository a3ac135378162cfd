"""Runs `python -m adapterhub_registry`, which serves a registry like `adapt registry serve`."""

from __future__ import annotations

import sys

import click

from adapterhub.core.errors import AdapterHubError
from adapterhub_registry.operations.commands import serve


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        serve.main(arguments, prog_name="python -m adapterhub_registry", standalone_mode=False)
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except AdapterHubError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

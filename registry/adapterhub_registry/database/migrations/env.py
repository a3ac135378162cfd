"""Alembic runs this file: it migrates on the connection of `schema.upgrade`, inside its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()

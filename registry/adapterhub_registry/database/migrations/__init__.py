"""The schema changes for Alembic, one file each in `versions`; `schema.upgrade` runs them."""

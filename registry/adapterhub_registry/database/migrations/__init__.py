"""The schema changes, for Alembic: one file each in `versions`, run by `schema.upgrade`."""

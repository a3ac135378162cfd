"""The tables, their schema and its migrations, and the trees of commits."""

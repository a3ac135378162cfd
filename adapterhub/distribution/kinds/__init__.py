"""The kinds of remotes, one file a kind with its `KIND`; see `distribution.remote_kinds`, which lists this folder."""

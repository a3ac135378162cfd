"""Routes times callers: what nobody may see changes no answer.

Two registries differ by hidden things only. Each route of the application's own table is asked with each caller at both,
and the answers are compared as a client gets them: status, headers, ETags, bodies, counts. Nothing about hidden things
may be told otherwise: every hidden text holds `MARK`, and no answer does.

`python -m tests.registry.matrix` prints each difference that `listed.py` does not give a reason for.
"""

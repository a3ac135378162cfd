"""Other programs load what is exported for them, and compute what the adapter means.

    python -m tests.programs            # diffusers, in this environment
    python -m tests.programs --mlx      # MLX as well, in an environment of its own that the command makes

Prints the largest difference of each case, and fails above its bound.
"""

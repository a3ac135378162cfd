"""The checks, one file each: `check(subject)` yields findings and raises nothing."""

"""`python -m adapterhub.cli`: the console script, for where it is not installed."""

from adapterhub.cli import main

if __name__ == "__main__":
    main()

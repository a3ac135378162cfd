"""Run `adapt` as `python -m adapterhub.cli`, for environments without the console script."""

from adapterhub.cli import main

if __name__ == "__main__":
    main()

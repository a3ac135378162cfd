"""The errors of the package, under their public name; `adapterhub.core.errors` defines them."""

from adapterhub.core.errors import *  # noqa: F403

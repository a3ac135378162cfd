"""Licences: SPDX expressions and their terms."""

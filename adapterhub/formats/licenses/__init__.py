"""Licences: SPDX expressions, and what each lets a merge do."""

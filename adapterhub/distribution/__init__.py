"""Which build, from which place, and how it comes in: resolve, the Hub, install.

What a project asks for belongs in `projects`.
"""

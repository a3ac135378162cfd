"""Names, digests, dates, limits and errors: words that every other wing uses.

No format of a file and no rule about adapters belongs here.
"""

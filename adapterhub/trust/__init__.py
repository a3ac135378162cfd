"""Whether a folder holds a sound adapter (`verify`), and who made it (`signing`).

What a library does with the answer belongs in `library`.
"""

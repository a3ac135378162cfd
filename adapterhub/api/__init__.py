"""The public Python interface: `Library` and `Project`, with one function for everything that the command line does.

Here belong the functions that the commands and a program share. Nothing here prints, prompts on a terminal or exits.
"""

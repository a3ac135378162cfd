"""llama.cpp's server, and the front that gives it names: its start, what names mean, and what passes through."""

from adapterhub.inference.serving.llama_cpp.names import Names
from adapterhub.inference.serving.llama_cpp.proxy import command_of, find_llama_server, front

__all__ = ["Names", "command_of", "find_llama_server", "front"]

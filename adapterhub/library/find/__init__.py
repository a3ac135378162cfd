"""Finding builds of a library by what they are about, and what trials of them measured."""

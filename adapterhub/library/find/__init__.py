"""Finding builds of a library by what they are about."""

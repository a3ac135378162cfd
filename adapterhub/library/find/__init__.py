"""Finding builds of a library by what they are about, by what their weights do, and by what trials measured."""

"""What versions mean, apart from their text."""

"""Tables, their schema and its migrations."""

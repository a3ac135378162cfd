"""The project file: reading, editing, policy."""

"""Starting, moving and looking after a registry."""

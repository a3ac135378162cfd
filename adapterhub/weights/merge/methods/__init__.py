"""The merge methods, one file each, named as users type them."""

"""Names of modules: where an adapter of one program finds its place in a base of another."""

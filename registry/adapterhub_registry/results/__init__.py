"""Signed results of tests, and the rules of namespaces about them. The registry runs nothing."""

"""Runners: test tools that exist are called, not rewritten. A user names one; a contract cannot ask for one."""

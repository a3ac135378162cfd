"""Steps that move the lock of a project: to newer builds, back to earlier ones, or only as a preview."""

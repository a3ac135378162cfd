"""The pages of a local library: `adapt ui`."""

"""Search by meaning: the vectors of what builds say of themselves, and the builds that are nearest to a question."""

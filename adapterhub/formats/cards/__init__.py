"""Model cards: the metadata that a Hub reads and checks, and the card that a manifest gives."""

"""The prompt form: how an adapter wants to be asked, and the prompt that a question becomes."""

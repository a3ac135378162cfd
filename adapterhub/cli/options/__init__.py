"""Options and questions that commands share."""

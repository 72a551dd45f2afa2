"""``octavo chat``: a conversation with a model in the terminal, or line by line through a pipe."""

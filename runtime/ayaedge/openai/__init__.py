"""OpenAI's dictionaries, in and out."""

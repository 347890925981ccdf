"""Saved conversations: the archive, the document in it, and what it says."""

"""What a question will take, where each half runs, and which settings are fastest."""

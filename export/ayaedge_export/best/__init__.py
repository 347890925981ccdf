"""The effort `best`: sensitivity, allocation, rounding."""

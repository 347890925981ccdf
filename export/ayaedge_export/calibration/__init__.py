"""What calibration looks at, and the importance matrix that comes of it."""

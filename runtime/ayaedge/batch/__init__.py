"""Many images: what is asked, what was answered, and going on where it stopped."""

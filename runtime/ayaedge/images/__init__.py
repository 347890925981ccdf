"""Images from anything to tiles."""

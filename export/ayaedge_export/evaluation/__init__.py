"""How near a bundle is to its checkpoint."""

"""Bundles of true shapes with random weights."""

"""`ayaedge bench`: what this machine reaches with a bundle, and its limits."""

"""What this computer is: processor, memory, devices, and what may be tried on them."""

"""An export in the making: staging, journal, states, remaining time."""

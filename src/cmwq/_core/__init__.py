"""The mechanism and its policy. Nothing here imports threading, time, or a sensor: the world comes in by `ports`."""

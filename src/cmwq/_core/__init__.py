"""The mechanism and its policy. Nothing here imports a sensor: the world comes in by `ports`.

What is taken of `threading` all the same is no scheduling; ARCHITECTURE.md lists it, and a test holds it to that.
"""

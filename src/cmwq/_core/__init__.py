"""What pools and queues are built on: the ports to the world, locks in order, settings, checks of what users pass."""

"""What pools and queues are built on: ports to the system, the order of locks, settings, checks of arguments."""

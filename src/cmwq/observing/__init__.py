"""How a running process is looked at: the monitor that answers, and the clients that ask.

Importing this package starts nothing, and imports none of its modules.
"""

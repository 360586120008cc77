"""How a running process is looked at: the monitor that answers, the clients that ask, and traces.

Importing this package starts nothing, and imports none of its modules.
"""

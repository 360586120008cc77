"""contrib: cmwq in place of the thread pools of frameworks and libraries. One module for each, imported only if used.

Guarantees: a module here needs its own framework and nothing else beyond cmwq. It gives back what it was given: where a
framework shuts down the executor that it has, a lease ends, and the process's pools stay.
"""

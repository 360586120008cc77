"""Seeing a process work, from inside and from outside. Each way of looking is a module or a package of its own."""

"""The pool: which worker runs, rests or waits. It knows of named queues only what the protocols of `item` say."""

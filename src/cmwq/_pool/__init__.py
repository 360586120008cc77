"""The pool: who runs, who rests, who waits. It knows nothing of named queues but what the protocols of `item` say."""

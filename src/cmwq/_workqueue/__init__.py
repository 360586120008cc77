"""Named queues and their runtime: what is queued, where it waits, and how one waits for it. Built on `_pool`."""

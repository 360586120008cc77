"""What looks at a process that uses cmwq: from inside, or from another process. The core imports nothing of it."""

"""What shows what cmwq does: traces, the monitor and its views. Each part is a module of its own."""

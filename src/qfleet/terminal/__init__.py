"""What a run says in the terminal: its first lines, how it goes on, its last block."""

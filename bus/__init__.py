"""What engines tell each other: NATS, its subjects and messages, the journal, and books built from feeds."""

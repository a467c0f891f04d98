"""The parent of every replica, and nexusd's side of it."""

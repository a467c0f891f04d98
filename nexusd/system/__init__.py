"""Adapters, each named for what it touches."""

"""How fast and how big nexusd is, next to bare programs that do the same work in the same run."""

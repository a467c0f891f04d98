"""JSON-RPC 2.0 on a Unix socket: the table of methods and the way to them."""

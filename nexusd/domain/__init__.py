"""Pure decisions: manifests, life cycles, the fleet. Nothing here reads a clock, a file or a socket."""

"""nexusd: a single-host supervisor of modules. Importing this package imports nothing else."""

__version__ = "2.0.0"

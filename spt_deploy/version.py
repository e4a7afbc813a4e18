"""The version of this package, for those who write it down and import nothing else."""

__version__ = "0.1.0"

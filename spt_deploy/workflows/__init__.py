"""Workflows: one function a command, usable from Python; the command line parses, calls it and prints."""

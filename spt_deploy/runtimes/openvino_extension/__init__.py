"""Operators of our own for OpenVINO on the CPU: C++ sources beside this file, compiled once for the machine at hand.

`library.py` compiles them, `bodies.py` puts them in place of an exported file's functions. Where there is no compiler,
the functions run as they are, and say the same.
"""

"""Compression: networks made smaller, which run as before."""

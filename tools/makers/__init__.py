"""Makers of small data sets, commands of ``tools/prepare_data.py``."""

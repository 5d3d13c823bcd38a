"""Importable helpers of the scripts; each script does one job with them."""

"""What the scripts share, by subject; each script does one job with it."""

"""What goes beyond the paper; each file is a script with one subject (see README.md)."""

"""What surrounds every call: one context manager each, entered in order by the chain."""

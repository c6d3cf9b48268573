"""Facts about this machine, as plain values. Looks, and changes nothing; each function takes the paths that it looks at."""

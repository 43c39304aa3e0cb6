"""The command line, a file per command; options.py makes the flags that they share."""

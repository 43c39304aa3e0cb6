"""The command line: `ssd decode`, `ssd demo`, `ssd pull`, `ssd doctor`. One file a command; the options they share are options.py."""

"""What an operating system offers, and what strangers left in it: files, processes, signals, text."""

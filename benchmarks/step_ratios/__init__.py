"""How many times as long a step takes: with an argument, or than with another checkout's build."""

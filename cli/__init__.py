"""Commands for people: the local stack, the demo."""

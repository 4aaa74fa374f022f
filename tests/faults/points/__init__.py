"""Fault points: every call of every program with every fault; and whether the in-memory ports do as the real ones."""

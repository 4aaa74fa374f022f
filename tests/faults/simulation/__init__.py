"""The project's own code over in-memory ports, under a seeded scheduler, with faults between any two steps."""

"""The local stack: an AWS on loopback, and what starts, deploys to and stops it."""

"""The router: an upload comes in, a decision goes out, and nothing is forgotten before S3 or the queue has it."""

"""The batch worker: drains the queue through a GPU server, and forgets a message only when S3 has its outcome."""

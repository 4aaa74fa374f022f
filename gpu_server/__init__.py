"""The transcription server: HTTP in front, a sandboxed decoder and one speech engine behind."""

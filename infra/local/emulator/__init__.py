"""MiniStack with what it lacks for this project, one module per service.

Run it as `.venv-aws/bin/python -m infra.local.emulator` from the repository's root. It imports nothing from the
project's own environment: MiniStack pins its own botocore. Each patch names what it replaces and says why; start
fails if MiniStack is another version or if what is replaced is no longer there. To close a gap in one more service,
add a module with an `install()` and name it in `__main__`.

The order of steps in `lambda_.py`, `eventbridge.py` and `scheduler.py` follows MiniStack's (MIT licence, see NOTICE).
"""

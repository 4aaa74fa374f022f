"""The AWS CLI, loaded once: `python cli_server.py SOCKET` forks for each call that its small client hands over.

Most of a call is the CLI's start, and the scripts make hundreds. What runs in the fork is the CLI itself, with the
arguments, environment, folder and files of its caller. It runs in `.venv-aws`, which has nothing of the project.
"""

import functools
import json
import os
import signal
import socket
import sys
from pathlib import Path

CLIENT = """#!{python} -ISE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
call = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}
socket.send_fds(server, [json.dumps(call).encode()], [0, 1, 2])
sys.exit(int(server.recv(8) or b"255"))
"""
LARGEST_CALL = 1 << 20
SERVICES = (
    *("autoscaling", "budgets", "cloudwatch", "ec2", "ecr", "events", "iam", "kms", "lambda"),
    *("logs", "s3", "scheduler", "sns", "sqs", "ssm", "sts"),
)


def install(python: Path, folder: Path) -> tuple[Path, Path]:
    """Writes the small client; its path, and that of the socket on which the server must listen."""
    client, path = folder / "aws", folder / "socket"
    client.write_text(CLIENT.format(python=python, socket=str(path)))
    client.chmod(0o755)
    return client, path


def main() -> None:
    from awscli import clidriver
    from botocore import loaders

    read = functools.cache(loaders.JSONFileLoader().load_file)
    loaders.JSONFileLoader.load_file = lambda self, path: read(path)
    driver = clidriver.create_clidriver()
    for service in SERVICES:
        driver.session.get_service_model(service)
    data_path = os.environ["AWS_DATA_PATH"]  # set by the CLI, where its own data are
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    new = f"{sys.argv[1]}.new"
    server.bind(new)
    server.listen(64)
    os.rename(new, sys.argv[1])  # where it shows, it can be called
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve(connection, clidriver.main, data_path)
        connection.close()


def serve(connection: socket.socket, cli, data_path: str) -> None:  # type: ignore[no-untyped-def]
    status = 255
    try:
        message, files, _, _ = socket.recv_fds(connection, LARGEST_CALL, 3)
        call = json.loads(message)
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(call["environment"], AWS_DATA_PATH=data_path)
        os.chdir(call["folder"])
        sys.argv = ["aws", *call["arguments"]]
        status = cli()
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as end:
        status = end.code
    finally:
        connection.sendall(str(status).encode())
        os._exit(0)


if __name__ == "__main__":
    main()

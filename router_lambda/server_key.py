"""The key that the servers want, as SSM's Parameter Store keeps it."""

from collections.abc import Callable
from typing import Any

from aws_lambda_powertools.utilities.parameters import SSMProvider
from aws_lambda_powertools.utilities.parameters.exceptions import GetParameterError

from shared.errors import TransientError

KEY_SECONDS = 300  # how long it is remembered; a rotated one is picked up after that


def stored(ssm: Any, name: str) -> Callable[[], str]:
    """Reads the parameter `name`.

    What is returned raises TransientError when SSM does not give it: then no server can be asked, and the queue takes
    the job.
    """
    parameters = SSMProvider(boto3_client=ssm)

    def key() -> str:
        try:
            return str(parameters.get(name, max_age=KEY_SECONDS, decrypt=True))
        except GetParameterError as error:
            raise TransientError(f"the server's key cannot be read: {error}") from error

    return key

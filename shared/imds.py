"""What EC2's instance metadata service tells an instance about itself."""

import httpx

IMDS = "http://169.254.169.254"
IMDS_SECONDS = 2.0
TOKEN_SECONDS = 21_600  # the most there is


class Imds:
    """The service's version 2. Safe to share between threads.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    """

    def __init__(self, endpoint: str = IMDS) -> None:
        self._client = httpx.Client(base_url=f"{endpoint}/latest", timeout=IMDS_SECONDS, trust_env=False)
        self._token = ""

    def get(self, name: str) -> str | None:
        """The metadata's item `name`; None if there is none.

        Raises:
            httpx.HTTPError: the service does not answer, as everywhere but on an instance.
        """
        response = self._get(name)
        if response.status_code == httpx.codes.UNAUTHORIZED:  # no token yet, or it is too old
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            self._token = self._client.put("/api/token", headers=lifetime).raise_for_status().text
            response = self._get(name)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return response.raise_for_status().text.strip()

    def _get(self, name: str) -> httpx.Response:
        return self._client.get(f"/meta-data/{name}", headers={"X-aws-ec2-metadata-token": self._token})

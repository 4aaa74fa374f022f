"""Starts the emulator; its environment says where and how (see infra/local/stack.py)."""

import os

from infra.local.emulator.patching import require_version


def main() -> None:
    require_version()
    # Only now: these import MiniStack's internals, which another version may not have.
    from ministack import app

    from infra.local.emulator import autoscaling, cloudwatch, ec2, eventbridge, lambda_, scheduler, sqs

    for service in (autoscaling, cloudwatch, ec2, eventbridge, lambda_, scheduler, sqs):
        service.install()
    app._ready_scripts_state["pid"] = os.getpid()  # its health says all of that: who asks for it knows who answers
    app.main()


if __name__ == "__main__":
    main()

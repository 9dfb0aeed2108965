"""Learners end with the process that started them, or when it has no more use for them."""

from __future__ import annotations

import os
from typing import Any

# Not among what Ray Train documents, and yet the only way into its controller.
from ray.train.v2._internal.execution.callback import ControllerCallback


class Lifeline(ControllerCallback):
    """Ends the controller of Ray Train, and with it all learners, as soon as a mailbox is gone.

    Ray Train itself stops for a Ctrl-C in the main thread only; nothing that is said of a
    controller lets anybody else end it.

    Args:
        mailbox: of `open_mailbox`.
    """

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_controller_start(self, *context: object) -> None:
        """Called in the controller's process, which ends here; `ray.kill` would wait for itself."""
        gone = self.mailbox.until_gone.remote().future()
        gone.add_done_callback(lambda _: os._exit(1))

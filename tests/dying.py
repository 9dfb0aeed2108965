"""A `Transcriber` that does not survive long recordings."""

import os
import signal


class Transcriber:
    """Hears no words; kills its process where the sound is longer than 4.5 s."""

    def __call__(self, audio, rate):
        if len(audio) / rate > 4.5:
            os.kill(os.getpid(), signal.SIGKILL)
        return []

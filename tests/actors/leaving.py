"""Leaves a cluster while another thread makes garbage that holds references to objects."""

import gc
import threading
import time

import ray

from rapport.actors.cluster import cluster


class Ring:
    """Holds itself, so that only the collector frees it, in whichever thread it runs."""

    def __init__(self, reference: ray.ObjectRef) -> None:
        self.itself, self.reference = self, reference


def litter(references: list[ray.ObjectRef], until: threading.Event) -> None:
    """A ring every millisecond."""
    while references and not until.wait(0.001):
        Ring(references.pop())


left = threading.Event()
with cluster(None, 1):
    references = [ray.put(number) for number in range(5000)]
    gc.set_threshold(10, 1, 1)
    threading.Thread(target=litter, args=(references, left), daemon=True).start()
    time.sleep(0.1)
left.set()
print(f"left with {len(references)} references")

"""Speed of the search for the best key: ``python -m waterproof.bench.speed_attribution``. Prints; asserts nothing.

The limit is what NumPy reaches with nothing but the XOR and the population count of 64-bit words, which every pair of
image and key needs, on buffers that stay in the cache, on as many threads. The search adds what turns counts into an
answer: the smallest of them, ties, the first key, own keys passed over, drawing the keys. Limit and search are measured
in the same run, the limit before and after; shares are given by the wall clock and by the processor time of all
threads, because on a machine with other work the wall clock measures that too.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.seeds import Seed
from .statistics.matching import KeyBank, available_cores, best, pack

if TYPE_CHECKING:
    from collections.abc import Callable

_KEYS = 1 << 13
_GROUP = 8
_STREAM = 1 << 24


@dataclass(frozen=True)
class Measured:
    """Pairs of image and key, and how long they took.

    Attributes:
        pairs: how many.
        wall: seconds.
        cpu: processor seconds of all threads.
    """

    pairs: float
    wall: float
    cpu: float

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.pairs + other.pairs, self.wall + other.wall, self.cpu + other.cpu)

    def __str__(self) -> str:
        return f"{self.pairs / self.wall / 1e9:7.2f} e9 pairs/s   {self.pairs / self.cpu / 1e9:6.2f} e9 per core second"

    def share(self, limit: Measured) -> str:
        """Which part of the limit this is, by the wall clock and by processor time."""
        wall, cpu = (self.pairs / a / (limit.pairs / b) for a, b in ((self.wall, limit.wall), (self.cpu, limit.cpu)))
        return f"{wall:.0%} by the wall clock, {cpu:.0%} by processor time"


def measure(work: Callable[[], float], threads: int) -> Measured:
    """Runs ``work``, which returns the pairs it did, once in each thread."""
    done = [0.0] * threads

    def one(index: int) -> None:
        done[index] = work()

    workers = [threading.Thread(target=one, args=(index,)) for index in range(threads)]
    wall, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Measured(sum(done), time.perf_counter() - wall, time.process_time() - cpu)


def popcounts(bits: int, threads: int, seconds: float, xor: bool) -> Measured:
    """The population count of cache-resident words, with or without the XOR before it."""
    words = -(-bits // 64)

    def work() -> float:
        random = Seed.root(0).child("speed").numpy()
        keys = random.integers(0, 2**63, (words, _KEYS), dtype=np.uint64)
        images = random.integers(0, 2**63, (words, _GROUP, 1), dtype=np.uint64)
        mixed, counts = np.empty((_GROUP, _KEYS), dtype=np.uint64), np.empty((_GROUP, _KEYS), dtype=np.uint8)
        np.bitwise_xor(images[0], keys[0], out=mixed)
        pairs, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(50):
                for image, key in zip(images, keys, strict=True):
                    if xor:
                        np.bitwise_xor(image, key, out=mixed)
                    np.bitwise_count(mixed, out=counts)
            pairs += 50 * mixed.size
        return float(pairs)

    return measure(work, threads)


def streaming(bits: int, threads: int) -> Measured:
    """Reading the keys from memory once for every image, and nothing else."""
    words = -(-bits // 64)
    data = np.ones(_STREAM, dtype=np.uint64)

    def work() -> float:
        for _ in range(4):
            np.bitwise_or.reduce(data)
        return 4 * _STREAM / words

    return measure(work, threads)


def search(images: int, users: int, bits: int, threads: int) -> Measured:
    """The search itself: random payloads, own keys passed over, all powers of ten up to ``users`` answered."""
    random = Seed.root(1).child("speed").numpy()
    decoded, own = (pack(random.integers(0, 2, (images, bits), dtype=np.uint8).astype(np.bool_)) for _ in range(2))
    bank = KeyBank.random(users, bits, 0)
    ends = sorted({*(10**p for p in range(1, len(str(users)))), users} - {0})
    wall, cpu = time.perf_counter(), time.process_time()
    best(decoded, bank, ends, own, threads)
    return Measured(images * users, time.perf_counter() - wall, time.process_time() - cpu)


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Measures the search for the best key against what the processor allows, and prints a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, default=48)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement of a limit")
    given = parser.parse_args()
    bits, threads, seconds = given.bits, given.threads, given.seconds
    say(f"{given.images} images x {given.users} keys of {bits} bits, {threads} threads")
    small = peak_mib()
    limit = popcounts(bits, threads, seconds, xor=True)
    count = popcounts(bits, threads, seconds, xor=False)
    found = search(given.images, given.users, bits, threads)
    memory = peak_mib()
    limit += popcounts(bits, threads, seconds, xor=True)
    count += popcounts(bits, threads, seconds, xor=False)
    stream = streaming(bits, threads)
    say(f"search                  {found}   {found.wall:.2f} s, peak memory {memory:.0f} MiB ({small:.0f} before)")
    say(f"XOR and popcount only   {limit}   the limit; the search reaches {found.share(limit)}")
    say(f"popcount only           {count}   the search reaches {found.share(count)}")
    say(f"keys from memory only   {stream}   what a search without tiles could not pass")


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Which sample is read when: arithmetic, no data.

Training reads one endless stream: the shuffled samples of epoch 0, then those of epoch 1, and so on, without a seam.
Global batch b is the next `batch_size * world_size` positions of the stream, and each rank takes its rows of it. So

- the tail of an epoch that is smaller than a global batch opens the next epoch: nothing is lost or repeated;
- all ranks take equally many steps;
- the stream depends neither on the number of ranks nor of workers, and to resume is to know one integer.

Only the raw bits of Philox are used, since NumPy may change its shuffles from one version to the next.
"""

from collections.abc import Iterator, Sequence

import numpy as np

_ORDER, _AUGMENTATION = 0, 1  # what a random stream is for; part of its name


class TrainPlan:
    """The order of training samples, a function of (seed, epoch).

    Shards are shuffled; then, in groups of `shuffle_shards`, the samples of the group are shuffled. A reader so has
    few shards open at a time.

    Args:
        shard_sizes: Samples of each shard.
        seed: Non-negative.
        shuffle_shards: Shards whose samples are mixed.
        overfit: So many samples, the first ones of epoch 0, are every epoch. None for all, each time in another order.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, shuffle_shards: int, overfit: int | None = None) -> None:
        self.num_samples = sum(shard_sizes) if overfit is None else overfit
        self.overfits = overfit is not None
        self.seed = seed
        self.shuffle_shards = shuffle_shards
        self._sizes = np.asarray(shard_sizes)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._orders: dict[int, np.ndarray] = {}  # of the epoch at hand and, at its end, of the next

    def order(self, epoch: int) -> np.ndarray:
        """Index of each sample of `epoch` in the split, (num_samples,) int64."""
        if self.overfits:
            epoch = 0
        if epoch not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known == epoch - 1}
            self._orders[epoch] = self._shuffle(_generator(self.seed, _ORDER, epoch))[: self.num_samples]
        return self._orders[epoch]

    def samples(self, positions: range) -> np.ndarray:
        """Index in the split of the samples at consecutive `positions` of the stream."""
        parts, position = [], positions.start
        while position < positions.stop:
            epoch, offset = divmod(position, self.num_samples)
            parts.append(self.order(epoch)[offset : offset + positions.stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _shuffle(self, generator: np.random.Philox) -> np.ndarray:
        shards = _permutation(generator, len(self._sizes))
        groups = []
        for first in range(0, len(shards), self.shuffle_shards):
            members = [
                np.arange(self._starts[shard], self._starts[shard] + self._sizes[shard])
                for shard in shards[first : first + self.shuffle_shards]
            ]
            group = np.concatenate(members)
            groups.append(group[_permutation(generator, len(group))])
        return np.concatenate(groups)


class TrainBatches:
    """Stream positions of the batches of one rank: those that begin in one epoch, from a resume point on.

    `len` also counts the batches of the epoch that lie before the resume point, as Lightning does.

    Args:
        num_samples: Of an epoch.
        batch_size: Of a rank.
        rank: Of this process.
        world_size: Number of ranks.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.rank = rank
        self.global_batch_size = batch_size * world_size
        self.seek(0)

    def seek(self, position: int, num_done: int = 0) -> None:
        """Continue at stream `position`, `num_done` batches after the epoch's first."""
        epoch_end = (position // self.num_samples + 1) * self.num_samples
        self._starts = range(position, epoch_end, self.global_batch_size)
        self._num_done = num_done

    def __len__(self) -> int:
        return self._num_done + len(self._starts)

    def __iter__(self) -> Iterator[range]:
        for start in self._starts:
            first = start + self.rank * self.batch_size
            yield range(first, first + self.batch_size)

    def stream_end(self, positions: range) -> int:
        """Where the global batch ends of which this rank reads `positions`."""
        return positions.start - self.rank * self.batch_size + self.global_batch_size


class EvalBatches:
    """Indices of the batches of one rank in a pass over a split: complete, nothing padded or repeated.

    Each rank takes a contiguous share, and all take the same number of batches of nearly equal size, so that no rank
    waits for another.

    Args:
        num_samples: Of the split; at least one per rank.
        batch_size: Most samples of a batch. (One more if it is 1 and the shares are unequal.)
        rank: Of this process.
        world_size: Number of ranks.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if num_samples < world_size:
            raise ValueError(f"{num_samples} samples are too few for {world_size} ranks; evaluate with fewer devices")
        self._share = _part(range(num_samples), rank, world_size)
        smallest, largest = num_samples // world_size, -(-num_samples // world_size)
        self._length = min(smallest, -(-largest // batch_size))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[range]:
        for batch in range(self._length):
            yield _part(self._share, batch, self._length)


def augmentation_uniforms(seed: int, positions: range) -> np.ndarray:
    """Four uniform numbers in [0, 1) for each of consecutive `positions`, (len(positions), 4) float64.

    A row depends on (seed, position) only: Philox is a function of a counter, and each count gives four words.
    """
    generator = _generator(seed, _AUGMENTATION)
    generator.advance(positions.start)
    bits = generator.random_raw(4 * len(positions)).reshape(-1, 4)
    return (bits >> np.uint64(11)) * 2.0**-53


def _generator(*name: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence(name))


def _permutation(generator: np.random.Philox, length: int) -> np.ndarray:
    return np.argsort(generator.random_raw(length), kind="stable")


def _part(whole: range, number: int, count: int) -> range:
    """Part `number` of `count` nearly equal parts."""
    return whole[number * len(whole) // count : (number + 1) * len(whole) // count]

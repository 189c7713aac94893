"""What keeps a codebook healthy in training: a start from data, and new places for codes that nobody uses."""

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from scalear.data.batch import Batch
from scalear.draws import CODEBOOK, stream_seed
from scalear.tokenizers.quantizer import Quantized, Quantizer
from scalear.tokenizers.vq import CodeTokenizer


class CodebookCare(Callback):
    """Starts the codebook by k-means on the first batch, and moves dead codes to vectors that are badly served.

    Both work on the vectors of the global batch, gathered in its order, with random numbers of (seed, step): all
    ranks compute the same codebook, whatever their number. What was counted is in the checkpoint, so that a resumed
    run goes on as if nothing had happened. Dead codes move to vectors drawn with probability proportional to their
    squared distance from their code, as in k-means++ (Arthur and Vassilvitskii 2007); reviving codes from data is
    due to Jukebox (Dhariwal et al. 2020, section 3.1).

    Args:
        kmeans_steps: Lloyd iterations at the very first step; 0 leaves the codebook as it is, which is right when it
            was loaded.
        revive_every: Optimizer steps over which uses are counted, before codes that have too few are moved.
        min_usage: A code is dead if it has less than this share of the uses that it would have if all had the same.
        seed: Names the random numbers.
    """

    def __init__(self, kmeans_steps: int = 10, revive_every: int = 50, min_usage: float = 0.05, seed: int = 0) -> None:
        if kmeans_steps < 0 or revive_every < 1 or not 0 <= min_usage < 1:
            raise ValueError(
                f"need kmeans_steps >= 0, revive_every >= 1 and min_usage in [0, 1), got {kmeans_steps}, "
                f"{revive_every}, {min_usage}"
            )
        self.kmeans_steps = kmeans_steps
        self.revive_every = revive_every
        self.min_usage = min_usage
        self.seed = seed
        self._uses_V: Tensor | None = None  # since codes were last moved, over all ranks; None before the first step

    def state_dict(self) -> dict:
        return {"uses": self._uses_V}

    def load_state_dict(self, state_dict: dict) -> None:
        self._uses_V = state_dict["uses"]

    def setup(self, trainer, pl_module, stage: str) -> None:
        if stage == "fit" and not isinstance(pl_module.tokenizer, CodeTokenizer):
            raise ValueError(
                f"CodebookCare is for tokenizers with a codebook, not for {type(pl_module.tokenizer).__name__}: "
                "remove it from trainer.callbacks"
            )

    @torch.no_grad()
    def on_train_batch_start(self, trainer, pl_module, batch: Batch, batch_idx: int) -> None:
        if self._uses_V is not None:
            return
        quantizer, generator = pl_module.tokenizer.quantizer, self._generator(step=0)
        for iteration in range(self.kmeans_steps):
            with trainer.precision_plugin.forward_context():
                quantized = pl_module.tokenizer.quantized(batch.inputs, pl_module.request(batch))
            _lloyd(quantizer, *_gather(trainer, quantized), iteration == 0, generator)
        self._uses_V = torch.zeros(quantizer.num_codes, dtype=torch.int64)

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, outputs: dict, batch: Batch, batch_idx: int) -> None:
        quantizer, quantized = pl_module.tokenizer.quantizer, outputs["quantized"]
        codes_n = torch.cat([codes_Bl.flatten() for q in quantized for codes_Bl in q.codes])
        uses_V = trainer.strategy.reduce(codes_n.bincount(minlength=quantizer.num_codes), reduce_op="sum")
        self._uses_V += uses_V.cpu()
        if trainer.fit_loop._should_accumulate() or trainer.global_step % self.revive_every:
            return
        dead = (self._uses_V < self.min_usage * self._uses_V.double().mean()).nonzero().flatten()
        if len(dead):
            _move(quantizer, dead, *_gather(trainer, quantized), self._generator(trainer.global_step))
        pl_module.log("train/revived_codes", float(len(dead)))
        self._uses_V.zero_()

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed((self.seed, CODEBOOK, step)))


def _gather(trainer: Trainer, quantized: list[Quantized]) -> tuple[Tensor, Tensor]:
    """Vectors (n, C) of the global batch and their codes (n,), all scales, in an order that ranks do not change.

    On the CPU, where sums do not depend on the order of threads.
    """
    vectors = [trainer.strategy.all_gather(v).reshape(-1, v.shape[-1]).cpu() for q in quantized for v in q.vectors]
    codes = [trainer.strategy.all_gather(c).reshape(-1).cpu() for q in quantized for c in q.codes]
    return torch.cat(vectors), torch.cat(codes)


def _lloyd(quantizer: Quantizer, vectors_nC: Tensor, codes_n: Tensor, first: bool, generator: torch.Generator) -> None:
    """One iteration of k-means; the first puts all codes on random vectors."""
    if first:
        chosen = torch.randint(len(vectors_nC), (quantizer.num_codes,), generator=generator)
        quantizer.codebook.copy_(vectors_nC[chosen])
        return
    counts_V = codes_n.bincount(minlength=quantizer.num_codes)
    sums_VC = torch.zeros(quantizer.codebook.shape, dtype=torch.float64).index_add_(0, codes_n, vectors_nC.double())
    used = counts_V > 0
    quantizer.codebook[used.to(quantizer.codebook.device)] = (sums_VC[used] / counts_V[used, None]).to(
        quantizer.codebook
    )
    _move(quantizer, (~used).nonzero().flatten(), vectors_nC, codes_n, generator)


def _move(quantizer: Quantizer, dead: Tensor, vectors_nC: Tensor, codes_n: Tensor, generator: torch.Generator) -> None:
    """Put dead codes on vectors that are far from theirs."""
    distance_n = (vectors_nC - quantizer.vectors.cpu()[codes_n]).double().square().sum(1)
    count = min(len(dead), int(distance_n.count_nonzero()))
    if count:
        chosen = torch.multinomial(distance_n, count, generator=generator)
        quantizer.codebook[dead[:count].to(quantizer.codebook.device)] = vectors_nC[chosen].to(quantizer.codebook)

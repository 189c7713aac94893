"""What keeps a codebook healthy in training: a start from data, and new places for codes that nobody uses."""

from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from scalear.data.batch import Batch
from scalear.draws import CODEBOOK, stream_seed
from scalear.idle_settings import refuse_idle
from scalear.tokenizers.bottleneck import Quantized
from scalear.tokenizers.quantizer import Quantizer
from scalear.training.tokenizer.checks import tokenizer_of


class CodebookCare(Callback):
    """Starts the codebook by k-means on the first batch, and moves dead codes to vectors that are badly served.

    Both work on the vectors of the global batch, gathered in its order, with random numbers of (seed, step): all
    ranks compute the same codebook, whatever their number. What was counted is in the checkpoint, so that a resumed
    run goes on as if nothing had happened. Dead codes move to vectors drawn with probability proportional to their
    squared distance from their code, as in k-means++ (Arthur and Vassilvitskii 2007), every scale with the same total;
    reviving codes from data is due to Jukebox (Dhariwal et al. 2020, section 3.1).

    Args:
        kmeans_steps: Lloyd iterations at the very first step, unless the codebook was loaded from a file; 0 for none.
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
        if not min_usage:
            refuse_idle(CodebookCare, "with min_usage 0 no code is dead", revive_every=revive_every)
        self.kmeans_steps = kmeans_steps
        self.revive_every = revive_every
        self.min_usage = min_usage
        self.seed = seed
        self._uses_V: Tensor | None = None  # since codes were last moved, over all ranks; None before the first step
        self._step = 0  # optimizer steps when codes were last looked at

    def state_dict(self) -> dict:
        return {"uses": self._uses_V, "step": self._step}

    def load_state_dict(self, state_dict: dict) -> None:
        self._uses_V, self._step = state_dict["uses"], state_dict["step"]

    def setup(self, trainer, pl_module, stage: str) -> None:
        tokenizer = tokenizer_of(pl_module, self)
        if stage == "fit" and tokenizer.quantizer is None:
            raise ValueError(
                f"CodebookCare is for tokenizers with a codebook, not for {tokenizer.title}: "
                "remove it from trainer.callbacks"
            )

    @torch.no_grad()
    def on_train_batch_start(self, trainer, pl_module, batch: Batch, batch_idx: int) -> None:
        if self._uses_V is not None:
            return
        quantizer, generator = pl_module.tokenizer.quantizer, self._generator(step=0)
        for iteration in range(0 if pl_module.codebook_loaded else self.kmeans_steps):
            with trainer.precision_plugin.forward_context():
                passages = pl_module.tokenizer.passages(batch.inputs, pl_module.request(batch))
            quantized = [passage.quantized for passage in passages]
            _lloyd(quantizer, _Pool.gather(trainer, quantized), iteration == 0, generator)
        self._uses_V = torch.zeros(quantizer.num_codes, dtype=torch.int64)

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, outputs: dict, batch: Batch, batch_idx: int) -> None:
        quantizer, quantized = pl_module.tokenizer.quantizer, outputs["quantized"]
        codes_n = torch.cat([codes_Bl.flatten() for q in quantized for codes_Bl in q.codes])
        uses_V = trainer.strategy.reduce(codes_n.bincount(minlength=quantizer.num_codes), reduce_op="sum")
        self._uses_V += uses_V.cpu()
        if trainer.global_step % self.revive_every or trainer.global_step == self._step:
            return  # not yet, or the same step again while gradients accumulate
        self._step = trainer.global_step
        dead = (self._uses_V < self.min_usage * self._uses_V.double().mean()).nonzero().flatten()
        if len(dead):
            _move(quantizer, dead, _Pool.gather(trainer, quantized), self._generator(trainer.global_step))
        pl_module.log("train/revived_codes", float(len(dead)))
        self._uses_V.zero_()

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed((self.seed, CODEBOOK, step)))


@dataclass
class _Pool:
    """What a step quantised, on all ranks and at all scales, in an order that the number of ranks does not change.

    On the CPU, where sums do not depend on the order of threads.

    Attributes:
        vectors_nC: Before quantisation.
        codes_n: What they became.
        weight_n: One over the number of vectors of the same scale: coarse scales have few, and matter as much.
    """

    vectors_nC: Tensor
    codes_n: Tensor
    weight_n: Tensor

    @classmethod
    def gather(cls, trainer: Trainer, quantized: list[Quantized]) -> "_Pool":
        def all_ranks(x: Tensor, shape: tuple[int, ...]) -> Tensor:
            return trainer.strategy.all_gather(x).reshape(shape).cpu()

        vectors = [all_ranks(v_BlC, (-1, v_BlC.shape[-1])) for q in quantized for v_BlC in q.vectors]
        codes = [all_ranks(c_Bl, (-1,)) for q in quantized for c_Bl in q.codes]
        weights = [torch.full((len(v_nC),), 1 / len(v_nC), dtype=torch.float64) for v_nC in vectors]
        return cls(torch.cat(vectors), torch.cat(codes), torch.cat(weights))


def _lloyd(quantizer: Quantizer, pool: _Pool, first: bool, generator: torch.Generator) -> None:
    """One iteration of k-means; the first puts all codes on random vectors."""
    codebook = quantizer.codebook
    if first:
        chosen = torch.multinomial(pool.weight_n, len(codebook), replacement=True, generator=generator)
        codebook.copy_(pool.vectors_nC[chosen])
        return
    count_V = pool.codes_n.bincount(minlength=len(codebook))
    sum_VC = torch.zeros(codebook.shape, dtype=torch.float64).index_add_(0, pool.codes_n, pool.vectors_nC.double())
    used = count_V > 0
    codebook[used.to(codebook.device)] = (sum_VC[used] / count_V[used, None]).to(codebook)
    _move(quantizer, (~used).nonzero().flatten(), pool, generator)


def _move(quantizer: Quantizer, dead: Tensor, pool: _Pool, generator: torch.Generator) -> None:
    """Put dead codes on vectors that are far from theirs."""
    distance_n = (pool.vectors_nC - quantizer.scaled(quantizer.codebook).cpu()[pool.codes_n]).double().square().sum(1)
    chance_n = distance_n * pool.weight_n
    count = min(len(dead), int(chance_n.count_nonzero()))
    if count:
        chosen = torch.multinomial(chance_n, count, generator=generator)
        quantizer.codebook[dead[:count].to(quantizer.codebook.device)] = pool.vectors_nC[chosen].to(quantizer.codebook)

"""docs/configs.md against the files it lists, and what follows from the batches and epochs of recipes."""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from config_fixtures import CONFIGS, EXPERIMENTS, GENERAL, ROOT, arguments, on_meta, parsed

from scalear.training.optim import OptimizerSettings
from scalear.training.run_length import run_length

pytestmark = pytest.mark.integration

TABLE = (ROOT / "docs/configs.md").read_text()
IMAGENET = 1_281_167  # images


def shown(path) -> str:
    """A file as the table has it."""
    return str(
        path.relative_to("configs") if path in GENERAL else path.relative_to(path.parts[0] + "/" + path.parts[1])
    )


def test_every_config_is_listed():
    assert [path for path in CONFIGS if f"| `{shown(path)}` |" not in TABLE] == []


@dataclass(frozen=True)
class Recipe:
    """As the papers and their code state it."""

    batch: int
    epochs: int
    peak: float
    last: float
    warmup_epochs: float = 0.0
    constant: float = 0.0  # share of the steps after the warm-up


def code_recipe(batch: int, epochs: int, base: float, last: float) -> Recipe:
    """VAR's: a base learning rate for 256 images, a fiftieth of warm-up, 5 % of the rest at the peak."""
    peak = base * batch / 256
    return Recipe(batch, epochs, peak, last * peak, epochs / 50, 0.05)


def _touches_the_recipe(path: Path) -> bool:
    return re.search("optimizer|max_(steps|epochs)", (ROOT / path).read_text()) is not None


FLOWAR = Recipe(2048, 400, 5e-5 * 2048 / 256, 1e-5, 100)
RECIPES = {
    **{f"imagenet256/flowar-{size}": FLOWAR for size in ("s", "b", "l", "h", "s-sdvae", "s-dcae")},
    "imagenet256/var-d12": code_recipe(768, 200, 1e-4, 0.1),
    "imagenet256/var-d16": code_recipe(768, 200, 1e-4, 0.1),
    "imagenet256/var-d20": code_recipe(768, 250, 1e-4, 0.1),
    "imagenet256/var-d24": code_recipe(768, 350, 8e-5, 0.01),
    "imagenet256/var-d30": code_recipe(1024, 350, 8e-5, 0.01),
    "imagenet512/var-d36": code_recipe(768, 350, 8e-5, 0.01),
    "imagenet256/flexvar-d16": code_recipe(768, 180, 1e-4, 0.1),
    "imagenet256/flexvar-d20": code_recipe(768, 250, 1e-4, 0.1),
    "imagenet256/flexvar-d24": code_recipe(768, 350, 8e-5, 0.01),
    # the code's recipe for as long as the paper's table 5
    "imagenet256/flexvar-mamba-d16": code_recipe(768, 40, 1e-4, 0.1),
    "imagenet256/flexvar-mamba-d20": code_recipe(768, 40, 1e-4, 0.1),
    "imagenet256/tokenizer-vq16": Recipe(128, 20, 1e-4, 0.0),
    "imagenet256/tokenizer-rvq16": Recipe(128, 40, 1e-4, 0.0),
}


def listed(name: str) -> tuple[str, int]:
    """Parameters and GPUs, as the table has them."""
    count, gpus = re.search(
        rf"\| `{shown(EXPERIMENTS[name][-1])}` \| ([\d,]+) \|.*\| (\d+) \| [^|]+\|\n", TABLE
    ).groups()
    return count, int(gpus)


def resolved(name: str, num_gpus: int) -> tuple[OptimizerSettings, int]:
    """Settings in optimizer steps, and the last step, with ImageNet on so many GPUs: what `fit` would work out."""
    config, model, data = on_meta(name)
    trainer = SimpleNamespace(
        datamodule=data,
        world_size=num_gpus,
        num_nodes=config.trainer.num_nodes,
        accumulate_grad_batches=config.trainer.accumulate_grad_batches,
        max_epochs=config.trainer.max_epochs or -1,
        max_steps=config.trainer.max_steps,
        limit_train_batches=1.0,
        reload_dataloaders_every_n_epochs=1,
        overfit_batches=0,
        callbacks=[],
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(max_steps=None)),
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=False),
    )
    data.trainer = trainer
    data.index = SimpleNamespace(num_samples=lambda split: IMAGENET)
    data.setup("fit")
    trainer.max_steps = trainer.fit_loop.epoch_loop.max_steps or trainer.max_steps
    run = run_length(trainer)
    return model.optimizer.resolve(run), run.total_steps


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_follow_from_batch_and_epochs(name):
    recipe, (_, gpus) = RECIPES[name], listed(name)
    settings, last_step = resolved(name, gpus)
    assert on_meta(name)[2].global_batch == recipe.batch
    assert settings.lr == pytest.approx(recipe.peak)
    assert last_step == round(recipe.epochs * IMAGENET / recipe.batch)
    assert settings.warmup_steps == round(recipe.warmup_epochs * IMAGENET / recipe.batch)
    assert settings.constant_steps == round(recipe.constant * (last_step - settings.warmup_steps))
    if settings.schedule != "constant":
        assert settings.final_lr == pytest.approx(recipe.last) and settings.total_steps == last_step


def test_a_rate_per_image_is_that_of_the_global_batch():
    settings, last_step = resolved("imagenet256/tokenizer-kl16", 8)
    assert settings.lr == pytest.approx(4.5e-6 * 96) and last_step == 500_000


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "imagenet" in name])
def test_table_and_file_agree(name):
    count, gpus = listed(name)
    config = parsed("fit", *arguments(name)).config.fit
    assert f" {count} " in (ROOT / EXPERIMENTS[name][-1]).read_text().splitlines()[0].replace("(", " ")
    if config.trainer.devices != "auto":  # else as many as torchrun has started
        assert config.trainer.devices * config.trainer.num_nodes == gpus


@pytest.mark.parametrize(
    "name", [name for name, files in EXPERIMENTS.items() if "fashion" in name and _touches_the_recipe(files[-1])]
)
def test_the_schedule_ends_when_training_does(name):
    config, model, _ = on_meta(name)
    settings = getattr(model, "optimizer", None) or model.optimizer_settings
    assert settings.schedule == "cosine" and settings.total_steps is None
    assert (config.trainer.max_steps == -1) != (config.trainer.max_epochs is None)

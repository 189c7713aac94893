"""Numbers of a sample set against real images: one pass of one extractor, every metric."""

import torch
from torch import Tensor

from scalear.evaluation.features import ClassifierFeatures, FeatureExtractor
from scalear.evaluation.fid import frechet_distance
from scalear.evaluation.image_set import ImageSet
from scalear.evaluation.precision_recall import precision_recall
from scalear.evaluation.variety import class_variety


def evaluate_samples(
    samples: ImageSet,
    reference: ImageSet,
    floor: ImageSet,
    extractor: FeatureExtractor,
    k: int = 3,
    batch_size: int = 250,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Compare samples with real images.

    Args:
        samples: Generated images with the classes that were asked for.
        reference: Real images that no training saw (the validation split).
        floor: Other real images (of the training split), as many as samples, and measured like them: the best that
            a generator can hope for.
        extractor: Network that measures; a `ClassifierFeatures` also judges the samples' classes.
        k: Neighbour that bounds the balls of precision and recall.
        batch_size: Images per pass of the extractor; changes nothing but memory.
        device: Where the extractor runs.

    Returns:
        `fid`, `fid_floor`, `precision`, `recall`; with a classifier `texture` and `texture_floor` (`texture_distance`)
        and `accuracy`, the share of samples that it takes for their label; where both sides are labelled `variety_min`,
        the spread of the least varied class over that of real images.
    """
    if len(floor) != len(samples):
        raise ValueError(f"the floor of {len(samples)} samples needs as many real images, got {len(floor)}")
    (fake, fake_label), (real, real_label), (other, _) = (
        extract(extractor, images, batch_size, device) for images in (samples, reference, floor)
    )

    precision, recall = precision_recall(real, fake, k)
    scores = {
        "fid": frechet_distance(real, fake),
        "fid_floor": frechet_distance(real, other),
        "precision": precision,
        "recall": recall,
    }
    if isinstance(extractor, ClassifierFeatures):
        seen = (extract(extractor.texture, images, batch_size, device)[0] for images in (samples, reference, floor))
        fake_texture, real_texture, other_texture = seen
        scores["texture"] = texture_distance(real_texture, fake_texture)
        scores["texture_floor"] = texture_distance(real_texture, other_texture)
    if isinstance(extractor, ClassifierFeatures) and fake_label.min() >= 0:
        scores["accuracy"] = (extractor.predict(fake) == fake_label).float().mean().item()
    if fake_label.min() >= 0 and real_label.min() >= 0:
        ratio = class_variety(real, real_label, fake, fake_label, int(max(fake_label.max(), real_label.max())) + 1)
        if not ratio.isnan().all():
            scores["variety_min"] = ratio[~ratio.isnan()].min().item()
    return scores


def texture_distance(real_BF: Tensor, fake_BF: Tensor) -> float:
    """FID of texture features, each in units of its standard deviation over the real images."""
    deviation_F = real_BF.std(dim=0).clamp_min(1e-6)
    return frechet_distance(real_BF / deviation_F, fake_BF / deviation_F)


def extract(
    extractor: FeatureExtractor, images: ImageSet, batch_size: int = 250, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Features (N, F) and labels (N,) of all images, on the CPU; one batch of images is in memory at a time."""
    features, labels = [], []
    for block in images.blocks(batch_size):
        image_BCHW = torch.tensor(block.images, device=device).permute(0, 3, 1, 2)
        features.append(extractor(image_BCHW).cpu())
        labels.append(torch.tensor(block.labels))
    return torch.cat(features), torch.cat(labels)


def summary(
    scores: dict[str, float], samples: ImageSet, reference: ImageSet, floor: ImageSet, extractor: FeatureExtractor
) -> str:
    """What was measured, with which network, against what; FID never without its floor."""
    others = ", ".join(f"{name} {scores[name]:.3f}" for name in scores if not name.startswith("fid"))
    return (
        f"FID {scores['fid']:.3f} (floor {scores['fid_floor']:.3f}), {others}\n"
        f"{len(samples):,} samples ({samples.name}) against {len(reference):,} real images ({reference.name}); "
        f"floor: {len(floor):,} ({floor.name}); {extractor.name}"
    )

"""Replays of the official tokenizers in our classes: KL-16, VQ-16 and VAR's VQVAE."""

import torch
from parity_case import Case, compare_gradients, official_gradients, watching
from torch import Tensor

from scalear.interop.official.convert import Conversion
from scalear.pyramid import CodePyramid, ResidualPyramid, join
from scalear.scales import ScaleSchedule
from scalear.tokenizers.autoencoder import ConvTokenizer

_MARGIN = 0.08  # VAR: a code counts as used from this share of the hits that it would have if all had the same


def replay_kl16(case: Case) -> None:
    model = case.build(case.convert())
    image = case.inputs["img"]
    with torch.no_grad(), watching(encoder=model.encoder) as calls:
        case.compare("out.moments", model.moments(image))
        posterior = model.posterior(image)
        case.compare("out.decode_mean", model.decode_raw(posterior.mean_BChw))
    case.maybe("mid.encoder_out", lambda: calls["encoder"][0][1])
    case.compare("out.mean", posterior.mean_BChw)
    case.compare("out.logvar", posterior.logvar_BChw)
    case.compare("out.std", torch.exp(0.5 * posterior.logvar_BChw))
    case.compare("out.sample", posterior.sample(case.inputs["eps"]))
    case.compare("out.kl", posterior.kl())


def replay_vq16(case: Case) -> None:
    conversion = case.convert()
    model, image = case.build(conversion), case.inputs["img"]
    with torch.no_grad(), watching(encoder=model.encoder) as calls:
        latent = model.encode(image)
    codes = model.quantizer.codes(latent)
    quantized = model.quantizer.quantize(latent)
    case.maybe("mid.encoder_out", lambda: calls["encoder"][0][1])
    case.compare("out.h", latent)
    case.compare("out.indices", codes.flatten())
    case.compare("out.quant", quantized)
    with torch.no_grad():
        case.compare("out.recon", model.decode_raw(quantized))
        case.compare("out.decode_code", model.decode_raw(model.quantizer.embed(codes, latent.shape[-2:])))
        _multi_scale(case, model, latent)
    _vq16_training(case, conversion, model, image)


def _multi_scale(case: Case, model: torch.nn.Module, latent: Tensor) -> None:
    schedule = ScaleSchedule.parse(case.constructor["scales"])
    pyramid = CodePyramid(model)
    targets = pyramid.build(latent, schedule).targets
    for k, side in enumerate(case.constructor["scales"]):
        scale = pyramid.latent(targets[: k + 1], schedule)
        case.compare(f"out.ms.indices.{side}", targets[k].flatten())
        case.compare(f"out.ms.quant.{side}", scale)
        case.maybe(f"out.ms.recon.{side}", lambda scale=scale: model.decode_raw(scale))


def _vq16_training(case: Case, conversion: Conversion, model: torch.nn.Module, image: Tensor) -> None:
    beta = case.constructor["kwargs"].get("commit_loss_beta", 0.25)
    entropy_ratio = case.constructor["kwargs"].get("entropy_loss_ratio", 0.0)
    passage = model.quantizer.passage(model.moments(image), entropy=True)
    codebook, commitment = passage.penalties["codebook"], beta * passage.penalties["commitment"]
    case.compare("out.train.vq_loss", codebook)
    case.compare("out.train.commit_loss", commitment)
    case.compare("out.train.entropy_loss", entropy_ratio * passage.penalties["entropy"])
    recent = torch.zeros(65_536)  # as recorded: every run began with none
    usage = llamagen_usage(recent, passage.quantized.codes[0], model.num_codes)
    case.compare("out.train.codebook_usage", torch.tensor(usage))
    (100 * (codebook + commitment)).backward()
    compare_gradients(case, "out.train", official_gradients(conversion, model))


def replay_var_vqvae(case: Case) -> None:
    conversion = case.convert()
    model, image = case.build(conversion), case.inputs["img"]
    latent = residual_codes(case, model, image, "", "")
    with torch.no_grad():
        for k, f_hat in enumerate(sums(model, latent, model.schedule)):
            case.maybe(f"out.recon.{k}", lambda f_hat=f_hat: model.decode(f_hat))
        case.compare("out.decode_f", model.decode_raw(latent))
        case.compare("out.fhat_to_img_f", model.decode(latent))
        probe = case.inputs["phi_probe"]
        num_scales = model.schedule.num_scales
        phi = [model.quantizer.phi(k, num_scales, probe) for k in range(num_scales)]
        case.compare("out.phi_of_probe", torch.stack(phi))
        other = ScaleSchedule.parse(case.constructor["alt_patch_nums"])
        for k, codes in enumerate(model.quantizer.encode(latent, other)):
            case.compare(f"out.alt_idx.{k}", codes)
        passage = model.quantizer.passage(latent)
    beta = case.constructor["kwargs"].get("beta", 0.25)
    loss = passage.penalties["codebook"] + beta * passage.penalties["commitment"]
    case.compare("out.quantizer_forward.vq_loss", loss)
    case.compare("out.quantizer_forward.fhat", passage.latent_BChw)
    hits_SV = conversion.carried["quantize.ema_vocab_hit_SV"]
    usage = var_usage(hits_SV, latent[:, 0].numel())
    case.compare("out.quantizer_forward.usages", usage)


def residual_codes(case: Case, model: ConvTokenizer, image: Tensor, mid: str, out: str) -> Tensor:
    """Compare latent, codes and contexts of VAR's tokenizer; returns the latent."""
    with torch.no_grad(), watching(encoder=model.encoder) as calls:
        latent = model.encode(image)
        case.maybe(f"mid.{mid}encoder_out", lambda: calls["encoder"][0][1])
        case.compare(f"out.{out}f", latent)
        built = ResidualPyramid(model).build(latent, model.schedule)
        for k, f_hat in enumerate(sums(model, latent, model.schedule)):
            case.compare(f"out.{out}idx.{k}", built.targets[k])
            case.compare(f"out.{out}fhat.{k}", f_hat)
        case.compare(f"out.{out}var_input", join(built.contexts[1:]))
    return latent


def sums(model: ConvTokenizer, latent: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
    """f_hat after each scale."""
    f_hats = [torch.zeros_like(latent)]
    for k, codes in enumerate(model.quantizer.encode(latent, schedule)):
        f_hats.append(model.quantizer.add(f_hats[-1], codes, k, schedule))
    return f_hats[1:]


def var_usage(hits_SV: Tensor, num_vectors: int) -> Tensor:
    """Percent of the codes that each scale uses, (S,): VAR's `usages`.

    Args:
        hits_SV: Moving averages of hits per batch, `quantize.ema_vocab_hit_SV`.
        num_vectors: Vectors of a batch at full size, over all ranks.
    """
    return 100 * (hits_SV >= num_vectors / hits_SV.shape[1] * _MARGIN).float().mean(dim=1)


def llamagen_usage(recent: Tensor, codes: Tensor, num_codes: int) -> float:
    """Share of the codes that are among the last ones, LlamaGen's `codebook_usage`.

    Args:
        recent: The codes of the past, oldest first, `quantize.codebook_used`.
        codes: The codes of one more batch, which push the oldest out.
        num_codes: Size of the codebook.
    """
    pushed = torch.cat([recent, codes.flatten().to(recent.dtype)])[-len(recent) :]
    return len(pushed.unique()) / num_codes

"""Replays of the official VAR, FlexVAR and their sampling filter in our classes."""

import torch
from parity_case import Case, compare_gradients, numbered, official_gradients, watching
from parity_tokenizers import residual_codes
from recorded_draws import RecordedDraws
from torch import Tensor

from scalear.guidance import Guidance
from scalear.interop.official.convert import Conversion
from scalear.models.generator import Generator
from scalear.models.positions import GridPositions
from scalear.pyramid import CodePyramid, Decomposition, Pyramid, ResidualPyramid, join
from scalear.scales import ScaleSchedule
from scalear.token_sampling import TokenSampling


class Watched(TokenSampling):
    """Decodes greedily and keeps the guided logits of every scale."""

    def __init__(self, more_smooth: bool) -> None:
        super().__init__(greedy=0, more_smooth=more_smooth)
        object.__setattr__(self, "logits", [])

    def sample(self, logits_BlV: Tensor, *args: object) -> Tensor:
        self.logits.append(logits_BlV)
        return super().sample(logits_BlV, *args)


def replay_var(case: Case) -> None:
    tokenizer, conversion = case.build(case.convert("vae")), case.convert("var")
    model, pyramid = case.build(conversion), ResidualPyramid(tokenizer)
    schedule = model.schedule
    latent = residual_codes(case, tokenizer, case.inputs["img"], "tok.", "tok.")
    blocks, logits, loss = _teacher_forcing(case, model, pyramid.build(latent, schedule), "label_drop_u")
    case.compare("out.forward.logits", logits)
    case.compare("out.forward.loss", loss)
    case.maybe("mid.forward.x_embedded", lambda: blocks[0][0])
    for index, (_, output) in enumerate(blocks):
        case.maybe(f"mid.forward.block{index}_out", lambda output=output: output)
    compare_gradients(case, "out.forward", official_gradients(conversion, model))
    for tag, run in case.extra["infer"].items():
        call = dict(run["call"])
        # VAR's number is one less than ours.
        scales = _infer(case, model, pyramid, tag, Guidance(call.pop("cfg") + 1, "linear"), schedule, call)
        for k in range(schedule.num_scales):
            codes = scales[k].argmax(-1) if scales[k].is_floating_point() else scales[k]
            case.compare(f"out.{tag}.idx.{k}", codes)
            case.compare(f"out.{tag}.f_hat.{k}", pyramid.latent(scales[: k + 1], schedule))
        with torch.no_grad():
            image = tokenizer.decode(pyramid.latent(scales, schedule))
        case.compare(f"out.{tag}.img", (image + 1) / 2)


def replay_flexvar(case: Case) -> None:
    tokenizer, conversion = case.build(case.convert("vae")), case.convert("var")
    model, pyramid = case.build(conversion), CodePyramid(tokenizer)
    with torch.no_grad():
        latents = {name: tokenizer.encode(image) for name, image in case.inputs.items() if name.startswith("img")}
    for name, sides in case.constructor["train_lists"].items():
        _flexvar_training(case, model, pyramid, conversion, name, ScaleSchedule.parse(sides), latents)
    positions = model.transformer.positions[0]
    for side in case.constructor.get("pos_sizes", ()):
        vectors = positions(ScaleSchedule.parse([side]), 0, 1) - positions.start
        case.maybe(f"mid.pos.{side}", lambda vectors=vectors: vectors[None])
    for name in case.names("out.pos_init."):
        height, width, dim = (int(part[1:]) for part in name.split("_"))
        grid = GridPositions(dim, model.schedule, side=max(height, width)).grid_Dhw
        case.compare(f"out.pos_init.{name}", grid[None, :, :height, :width])
    for tag, run in case.extra["infer"].items():
        call = dict(run["call"])
        schedule, cfg = ScaleSchedule.parse(call.pop("infer_patch_nums")), call.pop("cfg")
        constant, side = call.pop("used_llamagen_cfg", False), call.pop("max_pn", 16)
        guidance = Guidance(cfg, "constant") if constant else Guidance(cfg + 1, "flexvar", flexvar_side=side)
        scales = _infer(case, model, pyramid, tag, guidance, schedule, call, run.get("last_logits_stride"))
        case.compare(f"out.{tag}.idx", join(scales))
        with torch.no_grad():
            case.compare(f"out.{tag}.img", tokenizer.decode_raw(pyramid.latent(scales, schedule)))


def _flexvar_training(
    case: Case,
    model: Generator,
    pyramid: CodePyramid,
    conversion: Conversion,
    name: str,
    schedule: ScaleSchedule,
    latents: dict[str, Tensor],
) -> None:
    out = f"out.train.{name}"
    latent = pyramid.build(latents["img"], schedule)
    case.compare(f"{out}.x_wo_first", join(latent.contexts[1:]))
    case.compare(f"{out}.gt_idx", join(latent.targets))
    case.maybe(f"{out}.gt_idx_double", lambda: join(pyramid.build(latents["img_double"], schedule).targets))
    blocks, logits, loss = _teacher_forcing(case, model, latent, f"train.{name}.label_drop_u")
    case.compare(f"{out}.logits", logits)
    case.compare(f"{out}.loss", loss)
    case.maybe(f"mid.train.{name}.x_embedded_first4", lambda: blocks[0][0][:, : sum(schedule.lengths[:4])])
    gradients = official_gradients(conversion, model)
    compare_gradients(case, out, gradients)
    case.maybe(f"{out}.grad.pos_1LC_norm_per_cell", lambda: gradients["pos_1LC"][0].norm(dim=0))


def _teacher_forcing(
    case: Case, model: Generator, latent: Decomposition, drop: str
) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Input and output of each block, logits and loss; leaves gradients behind."""
    (stack,) = model.transformer.stacks
    model.zero_grad()
    draws = RecordedDraws({"label_drop": case.inputs[drop]})
    with watching(logits=model.head.output_proj, **numbered("block", stack)) as calls:
        loss = model.loss(latent, case.inputs["labels"], draws).total
    loss.backward()
    blocks = [(args[0], output) for (args, output) in (calls[f"block{i}"][0] for i in range(len(stack)))]
    return blocks, calls["logits"][0][1], loss


def _infer(
    case: Case,
    model: Generator,
    pyramid: Pyramid,
    tag: str,
    guidance: Guidance,
    schedule: ScaleSchedule,
    call: dict,
    stride: int = 0,
) -> list[Tensor]:
    """Content of every scale, decoded greedily as all recordings are; compares logits and inputs on the way."""
    sampling = Watched(call.pop("more_smooth", False))
    assert not call.keys() - {"top_p", "g_seed", "top_k"} and call.get("top_k", 1) == 1, f"{tag} cannot be replayed"
    label_B = case.inputs["infer.labels"]
    with watching(block=model.transformer.stacks[0][0]) as calls:
        scales = list(model.generate(pyramid, label_B, RecordedDraws({}), sampling, guidance, schedule))
    for k in range(schedule.num_scales):
        case.maybe(f"mid.{tag}.logits.{k}", lambda k=k: sampling.logits[k])
        # Without guidance there are no unconditional rows.
        case.rows(f"mid.{tag}.x_in.{k}", calls["block"][k][0][0], 0, len(calls["block"][k][0][0]))
    case.maybe(f"mid.{tag}.logits_last_strided", lambda: sampling.logits[-1][:, ::stride])
    return scales


def replay_filter(case: Case) -> None:
    for name, (top_k, top_p) in case.constructor["settings"].items():
        filtered = TokenSampling(top_k=top_k or None, top_p=top_p or 1.0).filter(case.inputs["logits"])
        case.compare(f"out.filtered_logits.{name}", filtered)
        case.compare(f"out.probs.{name}", filtered.softmax(-1))

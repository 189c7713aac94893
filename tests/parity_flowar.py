"""Replays of the official FlowAR and its flow network in our classes."""

import torch
from parity_case import Case, compare_gradients, numbered, per_scale, watching

from scalear.draws import RecordedDraws
from scalear.flow import FlowSolver, interpolate
from scalear.guidance import Guidance
from scalear.interop.official.convert import official_names
from scalear.models.generator import Generator
from scalear.scales import ScaleSchedule


def replay_flowar(case: Case) -> None:
    conversion = case.convert()
    model = conversion.model()
    _train(case, model)
    gradients = official_names(conversion, {name: weight.grad for name, weight in model.named_parameters()})
    compare_gradients(case, "out.train", gradients)
    for tag, run in case.extra["sampling"].items():
        _sample(case, model, tag, **run["call"])


def _train(case: Case, model: Generator) -> None:
    schedule = model.schedule
    pyramid = model.pyramid.build(case.inputs["latents"], schedule)
    times, noises = per_scale(case.inputs, "train.t."), per_scale(case.inputs, "train.noise.")
    draws = {"label_drop": case.inputs["train.label_drop_u"]}
    draws |= {f"t_{k}": t_B for k, t_B in times.items()} | {f"noise_{k}": noise for k, noise in noises.items()}
    with watching(transformer=model.transformer, head=model.head) as calls:
        loss = model.loss(pyramid, case.inputs["labels"], RecordedDraws(draws))
    loss.total.backward()
    ((x_t_BLC, noise_level_BK, *_), velocity_BLC), (_, hidden_BLD) = calls["head"][0], calls["transformer"][0]
    case.maybe("mid.train.x_input", lambda: torch.cat(pyramid.contexts[1:], dim=1))
    case.compare("out.train.z", hidden_BLD)
    case.compare("out.train.loss_per_scale", loss.per_scale["loss"])
    case.compare("out.train.loss", loss.total)
    # Our time runs the other way, from noise to data, and so does the velocity.
    for k, (x_t, velocity) in enumerate(zip(schedule.split(x_t_BLC), schedule.split(velocity_BLC), strict=True)):
        path = interpolate(noises[k], pyramid.targets[k], 1 - times[k][:, None, None])
        case.maybe(f"mid.train.x_t.{k}", lambda x_t=x_t: x_t)
        case.maybe(
            f"mid.train.t_index.{k}", lambda k=k: model.head.time_embedding.thousandths(noise_level_BK[:, k]).long()
        )
        case.maybe(f"out.train.v_target.{k}", lambda path=path: -path.velocity)
        case.compare(f"out.train.v_pred.{k}", -velocity)


def _sample(case: Case, model: Generator, tag: str, num_steps: int, guidance: float, cfg: float) -> None:
    label_B = case.inputs["sample.labels"]
    batch, schedule = len(label_B), model.schedule
    # Rows of the unconditional half come second; their noise is never read.
    noises = per_scale(case.inputs, "sample.noise.")
    draws = RecordedDraws({f"noise_{k}": noise[:batch] for k, noise in noises.items()})
    solver = FlowSolver("euler", num_steps, "flowar")
    scales, seen = [], []
    with watching(head=model.head, context=model.transformer.context_proj) as calls:
        for content in model.generate_scales(label_B, draws, solver, Guidance(cfg, "linear", 1 - guidance)):
            scales.append(content)
            seen.append(len(calls["head"]))
    for k, content in enumerate(scales):
        steps = calls["head"][(seen[k - 1] if k else 0) : seen[k]]
        case.compare(f"out.{tag}.latents.{k}", content)
        case.maybe(f"mid.{tag}.z.{k}", lambda steps=steps: steps[0][0][2][:batch])
        case.maybe(f"mid.{tag}.x_input.{k}", lambda k=k: calls["context"][k - 1][0][0][:batch])
        trajectory = torch.stack([args[0][:batch] for args, _ in steps])
        case.rows(f"mid.{tag}.trajectory.{k}", trajectory, 1, batch)
    noise_level = torch.tensor([1 - t for t in solver.times(0, schedule.num_scales)[:-1]])
    case.maybe(f"mid.{tag}.t_float32", lambda: noise_level)
    case.maybe(f"mid.{tag}.t_index", lambda: model.head.time_embedding.thousandths(noise_level).long())
    case.compare(f"out.{tag}.final", model.pyramid.latent(scales, schedule))


def replay_flow_head(case: Case) -> None:
    head = case.convert().model()
    for side in case.constructor["grids"]:
        x_BLC, t_B, hidden_BLD = (case.inputs[f"{name}.{side}"] for name in ("x", "t", "condition"))
        with (
            torch.no_grad(),
            watching(time=head.time_embedding, cond=head.cond_proj, **numbered("block", head.blocks)) as calls,
        ):
            velocity = head(x_BLC, t_B[:, None], hidden_BLD, ScaleSchedule.parse([side]))
        case.compare(f"out.v.{side}", -velocity)
        case.maybe(f"mid.t_index.{side}", lambda t=t_B: head.time_embedding.thousandths(t).long())
        case.maybe(f"mid.time_embed.{side}", lambda calls=calls: calls["time"][0][1][:, 0])
        case.maybe(f"mid.cond_embed.{side}", lambda calls=calls: calls["cond"][0][1])
        for index in range(len(head.blocks)):
            case.maybe(f"mid.block{index}_out.{side}", lambda i=index, calls=calls: calls[f"block{i}"][0][1])

"""Replays of the official FlowAR and its flow network in our classes."""

import torch
from model_fixtures import LatentsAlone
from parity_case import Case, compare_gradients, numbered, official_gradients, per_scale, watching
from recorded_draws import RecordedDraws

from scalear.flow import FlowSolver, interpolate
from scalear.guidance import Guidance
from scalear.models.generator import Generator
from scalear.pyramid import LatentPyramid
from scalear.scales import ScaleSchedule


def replay_flowar(case: Case) -> None:
    conversion = case.convert()
    model = case.build(conversion)
    pyramid = LatentPyramid(LatentsAlone(model.head.token_dim))
    _train(case, model, pyramid)
    compare_gradients(case, "out.train", official_gradients(conversion, model))
    for tag, run in case.extra["sampling"].items():
        _sample(case, model, pyramid, tag, **run["call"])


def _train(case: Case, model: Generator, pyramid: LatentPyramid) -> None:
    schedule, network = model.schedule, model.head.network
    latent = pyramid.build(case.inputs["latents"], schedule)
    times, noises = per_scale(case.inputs, "train.t."), per_scale(case.inputs, "train.noise.")
    draws = {"label_drop": case.inputs["train.label_drop_u"]}
    draws |= {f"t_{k}": t_B for k, t_B in times.items()} | {f"noise_{k}": noise for k, noise in noises.items()}
    with watching(transformer=model.transformer, network=network) as calls:
        loss = model.loss(latent, case.inputs["labels"], RecordedDraws(draws))
    loss.total.backward()
    ((x_t_BLC, noise_level_BK, *_), velocity_BLC), (_, hidden_BLD) = calls["network"][0], calls["transformer"][0]
    case.maybe("mid.train.x_input", lambda: torch.cat(latent.contexts[1:], dim=1))
    case.compare("out.train.z", hidden_BLD)
    case.compare("out.train.loss_per_scale", loss.per_scale["loss"])
    case.compare("out.train.loss", loss.total)
    # Our time runs the other way, from noise to data, and so does the velocity.
    for k, (x_t, velocity) in enumerate(zip(schedule.split(x_t_BLC), schedule.split(velocity_BLC), strict=True)):
        path = interpolate(noises[k], latent.targets[k], 1 - times[k][:, None, None])
        case.maybe(f"mid.train.x_t.{k}", lambda x_t=x_t: x_t)
        case.maybe(
            f"mid.train.t_index.{k}", lambda k=k: network.time_embedding.thousandths(noise_level_BK[:, k]).long()
        )
        case.maybe(f"out.train.v_target.{k}", lambda path=path: -path.velocity)
        case.compare(f"out.train.v_pred.{k}", -velocity)


def _sample(
    case: Case, model: Generator, pyramid: LatentPyramid, tag: str, num_steps: int, guidance: float, cfg: float
) -> None:
    label_B, network = case.inputs["sample.labels"], model.head.network
    batch, schedule = len(label_B), model.schedule
    # Rows of the unconditional half come second; their noise is never read.
    noises = per_scale(case.inputs, "sample.noise.")
    draws = RecordedDraws({f"noise_{k}": noise[:batch] for k, noise in noises.items()})
    solver = FlowSolver("euler", num_steps, "flowar")
    scales, seen = [], [(0, 0)]  # and how often the network was called and prepared before each scale
    with watching(network=network, semantics=network.cond_proj, context=model.transformer.context_proj) as calls:
        for content in model.generate(pyramid, label_B, draws, solver, Guidance(cfg, "linear", 1 - guidance)):
            scales.append(content)
            seen.append((len(calls["network"]), len(calls["semantics"])))
    for k, content in enumerate(scales):
        steps, prepared = calls["network"][seen[k][0] : seen[k + 1][0]], calls["semantics"][seen[k][1]]
        case.compare(f"out.{tag}.latents.{k}", content)
        case.maybe(f"mid.{tag}.z.{k}", lambda prepared=prepared: prepared[0][0][:batch])
        case.maybe(f"mid.{tag}.x_input.{k}", lambda k=k: calls["context"][k - 1][0][0][:batch])
        trajectory = torch.stack([args[0][:batch] for args, _ in steps])
        case.rows(f"mid.{tag}.trajectory.{k}", trajectory, 1, batch)
    noise_level = torch.tensor([1 - t for t in solver.times(0, schedule.num_scales)[:-1]])
    case.maybe(f"mid.{tag}.t_float32", lambda: noise_level)
    case.maybe(f"mid.{tag}.t_index", lambda: network.time_embedding.thousandths(noise_level).long())
    case.compare(f"out.{tag}.final", pyramid.latent(scales, schedule))


def replay_flow_head(case: Case) -> None:
    network = case.build(case.convert())
    for side in case.constructor["grids"]:
        x_BLC, t_B, hidden_BLD = (case.inputs[f"{name}.{side}"] for name in ("x", "t", "condition"))
        schedule, parts = ScaleSchedule.parse([side]), {"time": network.time_embedding, "cond": network.cond_proj}
        with torch.no_grad(), watching(**parts, **numbered("block", network.blocks)) as calls:
            velocity = network(x_BLC, t_B[:, None], network.prepare(hidden_BLD, schedule), schedule)
        case.compare(f"out.v.{side}", -velocity)
        case.maybe(f"mid.t_index.{side}", lambda t=t_B: network.time_embedding.thousandths(t).long())
        case.maybe(f"mid.time_embed.{side}", lambda calls=calls: calls["time"][0][1][:, 0])
        case.maybe(f"mid.cond_embed.{side}", lambda calls=calls: calls["cond"][0][1])
        for index in range(len(network.blocks)):
            case.maybe(f"mid.block{index}_out.{side}", lambda i=index, calls=calls: calls[f"block{i}"][0][1])

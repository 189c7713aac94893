import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models.vgg import cfgs, make_layers

from scalear.tokenizers.discriminator import AdversarialLoss, PatchDiscriminator
from scalear.tokenizers.objective import TokenizerLoss
from scalear.tokenizers.perceptual import LPIPS, FeatureDistance
from scalear.tokenizers.trainable import Reconstruction


@pytest.fixture
def decoder() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(1, 1, 3, padding=1)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def pair(image: torch.Tensor, decoded: torch.Tensor) -> list[Reconstruction]:
    return [Reconstruction(decoded, image, {})]


def test_terms_and_weights(image: torch.Tensor):
    reconstruction = Reconstruction(torch.zeros_like(image), image, {"kl": torch.tensor([1.0, 2.0, 3.0, 6.0])})
    loss = TokenizerLoss(l1_weight=0.5, l2_weight=2.0, penalty_weights={"kl": 0.1})
    terms = loss([reconstruction], nn.Parameter(torch.zeros(1)), step=0)
    expected = 0.5 * image.abs().mean() + 2.0 * image.square().mean() + 0.1 * 3.0
    torch.testing.assert_close(terms["loss"], expected)
    with pytest.raises(ValueError, match=r"set loss\.penalty_weights\.codebook"):
        loss([Reconstruction(image, image, {"codebook": torch.zeros(4)})], nn.Parameter(torch.zeros(1)), step=0)


def test_small_sizes_keep_reconstruction_and_code_losses_alone(image: torch.Tensor):
    """24 pixels are judged by all, 12 are too few for the perceptual distance, 4 also for the discriminator."""
    torch.manual_seed(0)
    distance = FeatureDistance(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), ["1"], minimum_size=16)
    adversarial = AdversarialLoss(image_channels=1, start_step=0, adaptive=False, channels=8, num_layers=1)
    loss = TokenizerLoss(penalty_weights={"codebook": 1.0}, perceptual=distance, adversarial=adversarial)
    reconstructions = []
    for side, scale in ((24, ""), (12, "2"), (4, "1")):
        target = F.adaptive_avg_pool2d(image, side)
        decoded = (0.5 * target).requires_grad_()
        reconstructions.append(Reconstruction(decoded, target, {"codebook": torch.tensor(side / 10)}, scale=scale))
    last_layer = nn.Parameter(torch.zeros(1))
    terms = loss(reconstructions, last_layer, step=0)
    for scale in ("", "_scale_2", "_scale_1"):
        assert {f"l1{scale}", f"l2{scale}", f"codebook{scale}"} <= terms.keys()
        assert (f"perceptual{scale}" in terms) == (scale == "")
    judge = adversarial.discriminator
    expected = -torch.stack([judge(r.image_BCHW).mean() for r in reconstructions[:2]]).mean()
    torch.testing.assert_close(terms["generator"], expected.detach())
    small = reconstructions[2].image_BCHW
    (gradient,) = torch.autograd.grad(terms["loss"], small)
    torch.testing.assert_close(gradient, (small - reconstructions[2].target_BCHW).sign() / small.numel() / 3)


def test_sizes_weigh_alike_or_by_their_pixels(image: torch.Tensor):
    small = F.adaptive_avg_pool2d(image, 6)
    pairs = [Reconstruction(torch.zeros_like(x), x, {}, scale=name) for x, name in ((image, ""), (small, "1"))]
    errors = [x.abs().mean() for x in (image, small)]
    for exponent, shares in ((0.0, (1 / 2, 1 / 2)), (1.0, (16 / 17, 1 / 17)), (0.5, (4 / 5, 1 / 5))):
        loss = TokenizerLoss(size_exponent=exponent)(pairs, nn.Parameter(torch.zeros(1)), step=0)["loss"]
        torch.testing.assert_close(loss, shares[0] * errors[0] + shares[1] * errors[1])


def test_adversarial_gradients_equal_two_alternating_steps(decoder: nn.Conv2d, image: torch.Tensor):
    """One backward pass gives the generator's and the discriminator's gradients of separate passes."""
    adversarial = AdversarialLoss(image_channels=1, weight=0.7, start_step=0, adaptive=False, channels=8)
    judge = adversarial.discriminator
    added, _ = adversarial(pair(image, decoder(image)), torch.zeros(()), decoder.weight, step=0)
    added.backward()

    (generator,) = torch.autograd.grad(-0.7 * judge(decoder(image)).mean(), decoder.weight)
    torch.testing.assert_close(decoder.weight.grad, generator)
    hinge = (1 - judge(image)).clamp(min=0).mean() + (1 + judge(decoder(image).detach())).clamp(min=0).mean()
    for parameter, expected in zip(judge.parameters(), torch.autograd.grad(hinge / 2, judge.parameters()), strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_adaptive_weight_balances_the_gradients_at_the_last_layer(decoder: nn.Conv2d, image: torch.Tensor):
    adversarial = AdversarialLoss(image_channels=1, weight=0.5, start_step=0, channels=8)
    reconstruction = decoder(image)
    other = (reconstruction - image).abs().mean()
    _, terms = adversarial(pair(image, reconstruction), other, decoder.weight, step=0)
    (of_other,) = torch.autograd.grad(other, decoder.weight, retain_graph=True)
    (of_judge,) = torch.autograd.grad(-adversarial.discriminator(reconstruction).mean(), decoder.weight)
    expected = 0.5 * of_other.norm() / (of_judge.norm() + 1e-4)
    torch.testing.assert_close(terms["adversarial_weight"], expected, rtol=1e-3, atol=0)


def test_before_its_start_the_adversarial_loss_is_zero_with_a_gradient_everywhere(decoder, image):
    adversarial = AdversarialLoss(image_channels=1, start_step=5, channels=8)
    added, terms = adversarial(pair(image, decoder(image)), torch.zeros(()), decoder.weight, step=4)
    added.backward()
    assert added == 0 and not terms
    assert all(not parameter.grad.any() for parameter in adversarial.parameters())


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_discriminator_takes_exactly_the_sizes_it_says(num_layers: int):
    judge = PatchDiscriminator(1, channels=8, num_layers=num_layers)
    smallest = judge.minimum_size
    assert judge(torch.zeros(2, 1, smallest, smallest)).shape == (2, 1, 1, 1)
    judge.check_size((smallest, smallest))
    with pytest.raises(ValueError, match="too small for this discriminator"):
        judge.check_size((smallest, smallest - 1))
    with pytest.raises(RuntimeError):
        judge(torch.zeros(2, 1, smallest - 1, smallest - 1))


def test_feature_distance(image: torch.Tensor):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU())
    distance = FeatureDistance(network, ["2", "4"])
    other = (image + 0.1 * torch.randn_like(image)).requires_grad_()
    values = distance(other, image)
    assert values.shape == (4,) and (values > 0).all()
    torch.testing.assert_close(distance(image, image), torch.zeros(4))
    values.sum().backward()
    assert other.grad.any()


def test_lpips_agrees_with_torchmetrics(tmp_path):
    """Same random backbone, same heads, same distances."""
    torch.manual_seed(0)
    backbone = make_layers(cfgs["D"], batch_norm=False)
    path = tmp_path / "vgg16.pth"
    torch.save({f"features.{name}": tensor for name, tensor in backbone.state_dict().items()}, path)
    lpips = LPIPS(str(path))
    lpips.load_weights()

    reference = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    slices = [reference.net.slice1, reference.net.slice2, reference.net.slice3, reference.net.slice4]
    convolutions = {}
    for part in (*slices, reference.net.slice5):
        for name, module in part.named_children():
            if isinstance(module, nn.Conv2d):
                module.load_state_dict(backbone[int(name)].state_dict())
                convolutions[name] = module
    assert len(convolutions) == 13
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(lpips(x, y), reference(x, y).flatten(), rtol=1e-4, atol=1e-6)
        grey = x[:, :1]
        torch.testing.assert_close(
            lpips(grey, y[:, :1]), lpips(grey.expand(-1, 3, -1, -1), y[:, :1].expand(-1, 3, -1, -1))
        )


def test_lpips_without_its_backbone_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no VGG-16 weights for LPIPS at"):
        LPIPS(str(tmp_path / "absent.pth")).load_weights()
    (tmp_path / "other.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="does not hold torchvision's VGG-16"):
        LPIPS(str(tmp_path / "other.pth")).load_weights()
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match="does not hold torchvision's VGG-16"):
        LPIPS(str(tmp_path / "wrong.pth")).load_weights()

import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from scalear.data.index import DatasetIndex, Shard
from scalear.evaluation.classifier import ImageClassifier, save_classifier
from scalear.evaluation.extractors import ClassifierFeatures, InceptionFeatures, TimmFeatures, extractor_named
from scalear.evaluation.fid import FeatureFID

TIMM = "vit_tiny_patch16_224"


def images(count, seed, channels=1, size=16):
    return torch.randint(256, (count, channels, size, size), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.fixture(scope="module")
def inception():
    return InceptionFeatures("random:7")


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    save_classifier(tmp_path / "classifier.safetensors", ImageClassifier(1, 3, 32, widths=(4, 6, 8)), {})
    return ClassifierFeatures(str(tmp_path / "classifier.safetensors"), num_features=8)


def checkerboard(size, cell=1):
    board = (torch.arange(size) // cell)[:, None] + torch.arange(size) // cell
    return (255 * (board % 2)).byte()[None, None]


def seen_by_inception(extractor, image):
    """What the first convolution gets, as levels of 8 bits."""
    seen = []
    with extractor.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        extractor(image)
    return seen[0][0, 0] * 128 + 128


def test_the_network_beside_a_dataset_is_called_data(tmp_path):
    index = DatasetIndex("tiny", "images", 8, 1, ["a", "b"], {"train": [Shard("train.tar", 9, "5a")]})
    with pytest.raises(ValueError, match="the network beside a dataset, and .* is none"):
        extractor_named("data", None, str(tmp_path))
    index.save(tmp_path)
    path = tmp_path / "classifier.safetensors"
    with pytest.raises(ValueError, match=f"no classifier at {path}; .*classifier.yaml --data.data_dir {tmp_path} "):
        _ = extractor_named("data", None, str(tmp_path)).network
    record = {"class_names": ["a", "b"], "train_split": "train", "checksum": index.checksum("train"), "dataset": "tiny"}
    save_classifier(path, ImageClassifier(1, 2, 8, widths=(4, 6)), record | {"val_accuracy": 0.815})
    extractor = extractor_named("data", None, str(tmp_path))
    assert extractor.widths == {"pooled": 6, "logits": 2, "texture": 10}
    FeatureFID(extractor).update(images(2, 0, size=8), real=True)  # as wide as the file says
    assert extractor.title == f"{extractor.name}, 81.5% of labels right, trained on tiny"
    assert extractor_named("data", str(path)).name == extractor.name


def test_a_classifier_is_refused_beside_its_dataset_that_has_changed(tmp_path):
    index = DatasetIndex("tiny", "images", 8, 1, ["a", "b"], {"train": [Shard("train.tar", 9, "5a")]})
    path = tmp_path / "classifier.safetensors"
    record = {"class_names": ["a", "b"], "train_split": "train", "checksum": index.checksum("train"), "dataset": "tiny"}
    others = [
        replace(index, splits={"train": [Shard("train.tar", 9, "5b")]}),
        replace(index, splits={"val": [Shard("train.tar", 9, "5a")]}),
        replace(index, class_names=["a", "c"]),
    ]
    save_classifier(path, ImageClassifier(1, 2, 8, widths=(4, 6)), record)
    for other in others:
        other.save(tmp_path)
        refusal = "was trained on other images than lie beside it, for tiny has changed since: remove it, and train one"
        with pytest.raises(ValueError, match=refusal):
            _ = ClassifierFeatures(str(path)).network
    # of other images than those beside, on purpose
    for elsewhere in ({"dataset": "tiny-rest"}, {"checksum": None}):
        save_classifier(path, ImageClassifier(1, 2, 8, widths=(4, 6)), record | elsewhere)
        for other in others:
            other.save(tmp_path)
            assert ClassifierFeatures(str(path)).widths["pooled"] == 6


@pytest.mark.integration
def test_inception_gives_what_torch_fidelity_gives(inception, tmp_path):
    torch.save(inception.network.state_dict(), tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(tmp_path / "weights.pth"))
    ours, image = InceptionFeatures(str(tmp_path / "weights.pth")), images(3, 0, channels=3, size=64)
    features = ours(image)
    assert {name: x.shape[1] for name, x in features.items()} == ours.widths
    for name, expected in zip(("pooled", "logits"), theirs(image), strict=True):
        assert expected.std() > 1e-3
        torch.testing.assert_close(features[name], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inception(image)[name], expected, rtol=1e-4, atol=1e-5)


def test_spatial_features_are_those_of_adm(inception):
    """`mixed_6/conv`, whose first 7 channels lie last, as in TensorFlow: the order that ADM's `mu_s` has."""
    image, network = images(2, 0, channels=3, size=299), inception.network
    x = (image.float() - 128) / 128
    for name, layer in network.named_children():
        if name == "Mixed_6d":
            break
        x = layer(x)
    expected = F.relu(network.Mixed_6d.branch1x1.bn(network.Mixed_6d.branch1x1.conv(x)))
    spatial = inception(image)["spatial"].reshape(2, 17, 17, 7)
    torch.testing.assert_close(spatial, expected[:, :7].permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_inception_sees_images_enlarged_as_tensorflow_1_does(inception):
    """2 x 2 pixels to 299: TensorFlow 1 reads at 2/299 i, which ends in a plateau; Pillow half a pixel beside it."""
    board, places = checkerboard(2), [0, 1, 75, 149, 150, 298]
    seen = seen_by_inception(inception, board)
    assert seen[0, places].tolist() == pytest.approx([0, 1.70569, 127.926, 254.147, 255, 255], abs=1e-3)
    assert seen[75, places].tolist() == pytest.approx(
        [127.9264, 127.9207, 127.4986, 127.0764, 127.0736, 127.0736], abs=1e-3
    )
    pillow = np.asarray(Image.fromarray(board[0, 0].numpy()).resize((299, 299), Image.Resampling.BILINEAR))
    assert pillow[0, places].tolist() == [0, 0, 1, 128, 129, 255]


def test_inception_sees_images_reduced_without_antialiasing(inception):
    """598 to 299: TensorFlow takes every second pixel, which is black here; Pillow averages."""
    board = checkerboard(598)
    assert seen_by_inception(inception, board).unique().tolist() == [0]
    pillow = np.asarray(Image.fromarray(board[0, 0].numpy()).resize((299, 299), Image.Resampling.BILINEAR))
    assert {127, 128} >= set(pillow[1:-1, 1:-1].flatten().tolist())


def test_levels_of_8_bits_reach_inception_unrounded_and_unscaled(inception):
    """As in ADM's evaluator: uint8 becomes float32, and what resizing makes of it stays between levels."""
    levels = torch.arange(256).byte().repeat(299, 2)[None, None, :, :299]
    assert torch.equal(seen_by_inception(inception, levels), levels[0, 0].float())
    between = seen_by_inception(inception, images(1, 0, size=64))
    assert (between - between.round()).abs().max() > 0.4


def test_inception_takes_grey_as_rgb(inception):
    grey = images(2, 0)
    features = inception(grey)
    assert all(torch.equal(x, features[name]) for name, x in inception(grey.expand(-1, 3, -1, -1)).items())


def test_random_weights_are_those_of_a_seed_and_draw_nothing_from_others(inception):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    again, other = InceptionFeatures("random:7"), InceptionFeatures("random:8")
    states = [extractor.network.state_dict() for extractor in (inception, again, other)]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])
    assert "random" in again.name and again.name != other.name
    with pytest.raises(ValueError, match="random:0"):
        _ = InceptionFeatures("random:").network


def test_timm_reads_a_local_file_and_prepares_images_as_the_network_asks(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(TIMM).eval()
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    extractor, image = TimmFeatures(TIMM, str(tmp_path / "vit.pth")), images(2, 0, channels=3, size=40)
    features = extractor(image)
    assert {name: x.shape[1] for name, x in features.items()} == extractor.widths == {"pooled": 192, "logits": 1000}
    config = timm.data.resolve_model_data_config(network)
    prepare = timm.data.create_transform(**config)
    x = torch.stack([prepare(Image.fromarray(array)) for array in image.permute(0, 2, 3, 1).numpy()])
    with torch.no_grad():
        torch.testing.assert_close(features["logits"], network(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features["pooled"], network.forward_features(x)[:, 0], rtol=1e-4, atol=1e-5)
    smaller = TimmFeatures(TIMM, str(tmp_path / "vit.pth"), image_size=64)
    assert smaller.network.patch_embed.img_size == (64, 64) and smaller.name != extractor.name
    assert smaller(image[:, :1])["pooled"].shape == (2, 192)


def test_features_of_a_classifier(classifier):
    image = images(5, 0)
    features, network = classifier(image), classifier.network
    x = image.float() / 127.5 - 1
    assert {name: x.shape[1] for name, x in features.items()} == classifier.widths
    torch.testing.assert_close(features["logits"], network(x))
    torch.testing.assert_close(features["pooled"], network.features(x))
    fine = network.stages[0](x)
    coarse = network.stages[2](network.stages[1](fine))
    torch.testing.assert_close(features["texture"], torch.cat([fine.mean((2, 3)), coarse.mean((2, 3))], dim=1))


def test_extractors_by_name(tmp_path):
    fashion = extractor_named("fashion")
    assert isinstance(fashion, ClassifierFeatures) and fashion.network.num_classes == 10
    assert isinstance(extractor_named("inception", "some.pth"), InceptionFeatures)
    dino = extractor_named("timm:vit_large_patch14_dinov2.lvd142m@224")
    assert (dino.num_features, dino.kind) == (1024, "timm:vit_large_patch14_dinov2.lvd142m, 224 px")
    assert "518 px" in extractor_named("timm:vit_large_patch14_dinov2.lvd142m").kind
    for name, message in (
        ("resnet", "take inception, data, fashion or timm:MODEL"),
        ("timm:no_such_net", "timm has no model 'no_such_net'"),
        (f"timm:{TIMM}@big", "a number of pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            extractor_named(name)


def test_a_missing_file_is_named_with_the_place_that_it_comes_from(tmp_path):
    missing = str(tmp_path / "no.file")
    for extractor, source in (
        (ClassifierFeatures(missing), "scalear fit -c configs/fashion/classifier.yaml"),
        (InceptionFeatures(missing), "pt_inception-2015-12-05-6726825d.pth"),
        (TimmFeatures(TIMM, missing), "model.safetensors from https://huggingface.co/timm/vit_tiny_patch16_224"),
    ):
        with pytest.raises(ValueError, match=f"no .* at .*no.file; .*{source}"):
            extractor(images(1, 0))
        assert "no file" in extractor.name


def test_damaged_files_and_other_networks_are_refused(classifier, tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"not a network")
    for broken in (ClassifierFeatures, InceptionFeatures, lambda path: TimmFeatures(TIMM, path)):
        with pytest.raises(ValueError, match="damaged"):
            broken(str(tmp_path / "broken.pth"))(images(1, 0))
    torch.save({}, tmp_path / "empty.pth")
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("empty.pth", "other.pth"):
        with pytest.raises(ValueError, match="not torch-fidelity's Inception"):
            InceptionFeatures(str(tmp_path / name))(images(1, 0))
    with pytest.raises(ValueError, match=f"holds no {TIMM}"):
        TimmFeatures(TIMM, str(tmp_path / "other.pth"))(images(1, 0))
    with pytest.raises(ValueError, match="gives 8 features, not 192: leave out num_features"):
        ClassifierFeatures(classifier.weights, 192)(images(1, 0))
    with pytest.raises(ValueError, match="is no file"):
        ClassifierFeatures("random:0")(images(1, 0))


def test_extractors_refuse_what_they_cannot_measure(classifier):
    with pytest.raises(ValueError, match="uint8"):
        classifier(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="1 channel.*, got 3"):
        classifier(images(1, 0, channels=3))
    classifier.network.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        classifier(images(1, 0))


def test_names_tell_weights_apart_and_not_places(classifier, tmp_path):
    save_classifier(tmp_path / "other.safetensors", ImageClassifier(1, 3, 32, widths=(4, 6, 8)), {})
    shutil.copy(classifier.weights, tmp_path / "copy.safetensors")
    other, copy = (ClassifierFeatures(str(tmp_path / f"{name}.safetensors"), 8) for name in ("other", "copy"))
    assert classifier.name == copy.name != other.name

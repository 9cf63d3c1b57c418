"""Published state dicts come in and go out bit-equal; a key that does not fit is an error that names it."""

from pathlib import Path

import pytest
import torch

from fmri_scale.cli.parity import read_case
from fmri_scale.errors import CheckpointError
from fmri_scale.models import MaskedAutoencoder, Predictor
from fmri_scale.models.neurostorm_state import config_from_published, from_published, to_published
from tests.helpers.tiny_models import tiny

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def published():
    """The weights of a published autoencoder under its names, and our configuration of it."""
    case, arguments = read_case(GOLDEN / "mae_window.safetensors")
    return {k[6:]: v for k, v in case.items() if k.startswith("param.")}, config_from_published(arguments)


def assert_bit_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", ["mae_random_t6", "mae_window_patch6", "encoder_prompt", "encoder_first_window"])
def test_published_weights_round_trip_bit_equal(name):
    case, arguments = read_case(GOLDEN / f"{name}.safetensors")
    theirs = {k[6:]: v for k, v in case.items() if k.startswith("param.")}
    assert_bit_equal(to_published(from_published(theirs, config_from_published(arguments))), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("config", [tiny(), tiny(prompt_len=3, depths=[1, 2, 1], channel_multiplier=3)])
def test_our_weights_round_trip_bit_equal(config, dtype):
    ours = MaskedAutoencoder(config, seed=5).to(dtype).state_dict()
    back = from_published(to_published(ours), config)
    assert_bit_equal(back, ours)
    MaskedAutoencoder(config).to(dtype).load_state_dict(back)


def test_lightning_prefix_and_atlas_map_are_understood(published):
    state, config = published
    lightning = {f"model.{key}": value for key, value in state.items()}
    lightning["model.atlas_map"] = torch.zeros(8, 8, 8, dtype=torch.int32)
    assert_bit_equal(from_published(lightning, config), from_published(state, config))


def test_older_layout_becomes_the_window_mask_token(published):
    state, config = published
    older = {k: v for k, v in state.items() if k not in ("window_mask_token", "atlas_mask_token")}
    older["mask_token"] = torch.randn(256, 6)
    ours = from_published(older, config)
    assert torch.equal(ours["mask_tokens.window"], older["mask_token"])
    assert torch.equal(ours["mask_tokens.token"], torch.zeros(6))
    assert torch.equal(ours["mask_tokens.region"], torch.zeros(6))
    MaskedAutoencoder(config).load_state_dict(ours)


@pytest.mark.parametrize("hidden", [0, 24])
def test_encoder_with_a_head_comes_in_and_goes_out(published, hidden):
    state, config = published
    encoder = {k: v for k, v in state.items() if k.split(".")[0] in ("patch_embed", "pos_embeds", "layers")}
    whole = {f"model.{k}": v for k, v in encoder.items()}
    if hidden:
        whole |= {
            "output_head.head.hidden.weight": torch.randn(hidden, 48),
            "output_head.head.hidden.bias": torch.randn(hidden),
        }
    whole |= {"output_head.head.head.weight": torch.randn(1, hidden or 48), "output_head.head.head.bias": torch.ones(1)}
    ours = from_published(whole, config)
    Predictor(config, outputs=1, hidden=hidden).load_state_dict(ours)
    assert_bit_equal(to_published(ours), {k.removeprefix("model."): v for k, v in whole.items()})


def test_missing_unknown_and_misshaped_keys_are_named(published):
    state, config = published
    broken = dict(state)
    del broken["layers.0.blocks.1.norm2.bias"]
    broken["layers.0.blocks.1.attn.qkv.weight"] = torch.zeros(1)
    broken["pos_embeds.2.time_embed"] = torch.zeros(1, 24, 1, 1, 1, 9)
    with pytest.raises(CheckpointError) as caught:
        from_published(broken, config)
    message = str(caught.value)
    assert "1 missing: layers.0.blocks.1.norm2.bias" in message
    assert "1 unknown: layers.0.blocks.1.attn.qkv.weight" in message
    assert "1 of another shape: pos_embeds.2.time_embed [1, 24, 1, 1, 1, 9], expected [1, 24, 1, 1, 1, 8]" in message


def test_weights_of_another_size_are_refused(published):
    state, config = published
    with pytest.raises(CheckpointError, match=r"of another shape: .*\[6, 27\], expected \[12, 27\].* and \d+ more"):
        from_published(state, tiny(embed_dim=12, depths=config.depths, num_frames=8))


def test_a_doubled_key_is_refused(published):
    state, config = published
    with pytest.raises(CheckpointError, match="with and without the prefix"):
        from_published(state | {"model.mask_token": state["mask_token"]}, config)


def test_a_name_that_is_not_ours_is_refused():
    with pytest.raises(CheckpointError, match=r"backbone\.stages\.0\.gate\.weight"):
        to_published({"backbone.stages.0.gate.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="A_log_reverse: no published NeuroSTORM"):
        to_published(MaskedAutoencoder(tiny(bidirectional=True)).state_dict())

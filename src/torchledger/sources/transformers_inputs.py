"""What a transformers model takes -> example inputs: which arguments of forward to give, and their sizes.

Two tables answer the two questions: `COMPANIONS` says which arguments go together, `MAKERS` how each is made. A size
comes from the field of the config that the model itself reads; where no field says it, it is a constant of this file.
Numbers that a forward reads as values (ids, masks, boxes, grids) are real tensors; images, sounds and series lie on
meta.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

TOKENS = 128  # of a text, where the model takes as many
TARGET_TOKENS = 32  # of what a decoder has written so far
IMAGE = 224  # pixels a side, where the config leaves it open (convolutional nets, detectors)
GRID = 16  # patches a side of an image that comes as a row of patches: a multiple of every merge of 2, 4 or 8
SECOND = 16_000  # samples: a second of speech at the rate that the library's speech models are made for
FRAMES = 128  # of a spectrogram, where the model takes any number
STEPS = 20  # of a trajectory of states and actions
REGIONS = 36  # that a detector found in an image: LXMERT's number (arXiv:1908.07490, section 4)


@dataclass(frozen=True)
class Taken:
    """Hold what the makers read: the model, its config, the names that its forward takes, batch and dtype."""

    model: nn.Module
    names: frozenset[str]
    batch: int
    dtype: torch.dtype

    @cached_property
    def config(self) -> Any:
        return self.model.config

    def part(self, kind: str) -> Any:
        """Return the sub-config for `kind` (text, vision, audio), or the config itself."""
        for name in _PARTS[kind]:
            found = getattr(self.config, name, None)
            if found is not None and not isinstance(found, (dict, str, int)):
                return found
        return self.config

    def number(self, part: Any, names: str, default: int) -> int:
        """Return the first of the fields `names` of `part`, else of the whole config, that holds a whole number."""
        for owner in (part, self.config):
            for name in names.split():
                value = _first_number(getattr(owner, name, None))
                if value is not None:
                    return value
        return default

    def floats(self, *size: int) -> torch.Tensor:
        """Return a floating-point input on meta, the batch in front."""
        return torch.empty(self.batch, *size, dtype=self.dtype, device="meta")

    def whole(self, *size: int, value: int = 0) -> torch.Tensor:
        """Return a real input of whole numbers, the batch in front."""
        return torch.full((self.batch, *size), value, dtype=torch.int64, device="cpu")

    @cached_property
    def tokens(self) -> int:
        """How long a text is: TOKENS, or what the model has positions for."""
        limits = [self.number(self.part("text"), "max_position_embeddings n_positions max_seq_len", TOKENS)]
        for name, module in self.model.named_modules():
            # RoBERTa and its kin count on from the padding token, and have that many positions fewer.
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                limits.append(module.weight.shape[0] - module.padding_idx - 1)
        return min([TOKENS, *(limit for limit in limits if limit > 0)])  # 0 or less: relative positions alone

    @cached_property
    def token(self) -> int:
        """An id that means nothing special to the model."""
        special = {number for part in configs(self.config) for number in _special_ids(part)}
        vocabulary = self.number(self.part("text"), "vocab_size", 1000)
        return next((i for i in range(3, vocabulary) if i not in special), 0)

    @cached_property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        part = self.part("vision")
        backbone = next(
            (b for o in (part, self.config) if (b := getattr(o, "backbone_config", None)) is not None), None
        )
        names = "num_channels in_channels in_chans num_input_channels"
        channels = self.number(part, names, self.number(backbone, names, 3))
        if ratios := getattr(self.config, "scaled_images_ratios", None):  # Depth Pro: the smallest copy is one patch
            side = int(self.number(self.config, "patch_size", IMAGE) / min(ratios))
            return channels, side, side
        for owner in (part, self.config, backbone):
            for name in ("image_size", "input_size", "img_size", "crop_size", "max_img_size"):
                size = _pair(getattr(owner, name, None))
                if size is not None:
                    return (channels, *size)
        return channels, IMAGE, IMAGE

    @cached_property
    def patches(self) -> tuple[int, int]:
        """How many patches an image comes as, and how many numbers each has."""
        part = self.part("vision")
        side = self.number(part, "patch_size", 16)
        depth = self.number(part, "temporal_patch_size", 1)
        channels = self.number(part, "in_channels in_chans num_channels", 3)
        return GRID * GRID, channels * depth * side * side

    @cached_property
    def window(self) -> int | None:
        """Frames of the fixed window of Whisper and its kin, whose positions come after a convolution of stride 2."""
        audio = self.part("audio")
        positions = _first_number(getattr(audio, "max_source_positions", None))
        # In the models with these fields the positions are a limit alone.
        varies = hasattr(audio, "input_feat_per_channel") or hasattr(audio, "feature_projection_input_dim")
        return None if positions is None or varies else 2 * positions

    @cached_property
    def frames(self) -> int:
        """Frames of a spectrogram."""
        return self.window or FRAMES

    @cached_property
    def bands(self) -> int:
        """Bands of a spectrogram."""
        names = "num_mel_bins input_feat_per_channel feature_projection_input_dim n_mels feature_size input_feat_size"
        return self.number(self.part("audio"), names, 80)


# Where the parts of a model that joins several have their configs.
_PARTS = {
    "text": ("text_config", "language_config", "llm_config", "thinker_config", "text_encoder_config", "text_encoder"),
    "vision": ("vision_config", "vision_encoder_config", "image_config", "encoder", "visual_config"),
    "audio": ("audio_config", "audio_encoder_config", "encoder_config", "speech_config", "encoder"),
}


def configs(config: Any) -> Iterator[Any]:
    """Yield a config and the configs in it."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None and not isinstance(inner, dict):
            yield from configs(inner)


def _special_ids(config: Any) -> Iterator[int]:
    for name, value in vars(config).items():
        if name.endswith(("token_id", "token_index", "token_ids", "token_idx")):
            yield from (v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, int))


def _first_number(value: Any) -> int | None:
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _pair(value: Any) -> tuple[int, int] | None:
    """Return height and width of a size that is written as a number, a list or a dict."""
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value, value]
    if isinstance(value, (list, tuple)) and len(value) >= 2 and all(isinstance(v, int) for v in value):
        return value[-2], value[-1]
    return None


def example(model: nn.Module, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return keyword arguments for one call of the model's forward with `batch` samples.

    Raises `LookupError` with the name of an argument that forward needs and that no rule makes.
    """
    parameters = inspect.signature(model.forward).parameters
    taken = Taken(model, frozenset(parameters), batch, dtype)
    needed = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    given: dict[str, Any] = {}
    for name in dict.fromkeys([*needed, *_main(taken), *_companions(taken)]):
        if name not in MAKERS:
            raise LookupError(name)
        given[name] = MAKERS[name](taken)
    return given


# ---- which arguments


def _main(taken: Taken) -> list[str]:
    """Return what the model calls its main input, or what its forward takes of the usual ones."""
    said = getattr(taken.model, "main_input_name", None)
    names = [said] if isinstance(said, str) else list(said or [])
    found = [name for name in names if name in taken.names]
    usual = ("input_ids", "pixel_values", "input_features", "input_values")
    return found or [name for name in usual if name in taken.names][:1]


def _companions(taken: Taken) -> list[str]:
    return [name for name, applies in COMPANIONS if name in taken.names and applies(taken)]


def _has(taken: Taken, *names: str) -> bool:
    return any(getattr(taken.config, name, None) is not None for name in names)


def _marks(taken: Taken, *beginnings: str) -> bool:
    """Whether a field of the config holds the token that stands for an image or a sound in a text."""
    fields = (name for part in configs(taken.config) for name in vars(part))
    return any(name.startswith(beginnings) and "token" in name for name in fields)


def _sees_apart(taken: Taken) -> bool:
    """Whether images have a tower of their own beside the text's (CLIP, ViLT), rather than a token in the text.

    With such a token a text alone is a whole input, and it is what is given.
    """
    return _has(taken, "vision_config", "image_config", "image_size", "max_img_size") and not _marks(
        taken, "image_token", "video_token", "boi_token", "media_token", "im_start_token", "image_start"
    )


def _hears_apart(taken: Taken) -> bool:
    return _has(taken, "audio_config", "speech_config") and not _marks(taken, "audio_token", "audio_start", "boa_token")


def _has_prenet(taken: Taken, side: str) -> bool:
    """Whether the encoder or the decoder begins with a net that makes hidden states of what goes in.

    SpeechT5's models for a task do; its bare model takes hidden states.
    """
    return any(side in name and name.endswith("prenet") for name, _ in taken.model.named_modules())


def _describes_prenets(taken: Taken) -> bool:
    return any("prenet" in name for name in vars(taken.config))


# The arguments without which a model does not run, though its signature gives them a default: name, and when.
COMPANIONS: tuple[tuple[str, Callable[[Taken], bool]], ...] = (
    ("input_ids", lambda t: "pixel_values" in t.names and _has(t, "text_config") and _sees_apart(t)),
    ("pixel_values", lambda t: "pixel_values_videos" not in t.names and _sees_apart(t)),
    ("input_features", _hears_apart),
    ("input_values", lambda t: _hears_apart(t) and "input_features" not in t.names),
    ("pixel_values_videos", lambda t: _sees_apart(t) and "input_ids" in t.names and "pixel_values" not in t.names),
    ("image_embeds_position_mask", lambda t: "pixel_values" in t.names and _sees_apart(t)),  # Kosmos: which tokens
    ("decoder_input_ids", lambda t: "decoder_inputs_embeds" in t.names),
    ("decoder_input_values", lambda t: "decoder_input_ids" not in t.names),
    ("lang_ids", lambda t: hasattr(t.config, "default_language")),  # X-MOD: each sample's adapter
    ("attention_mask", lambda t: "flattened_patches" in _main(t)),  # Pix2Struct: which patches are no padding
    ("bbox", lambda t: True),  # LayoutLM: where each word stands
    ("qformer_input_ids", lambda t: True),  # InstructBLIP: the instruction goes to both
    ("input_ids", lambda t: "qformer_input_ids" in t.names),
    ("visual_feats", lambda t: True),  # LXMERT: what a detector found, and where
    ("visual_pos", lambda t: True),
    ("actions", lambda t: "states" in t.names),
    ("rewards", lambda t: "states" in t.names),
    ("returns_to_go", lambda t: "states" in t.names),
    ("timesteps", lambda t: "states" in t.names),
    ("past_time_features", lambda t: True),
    ("past_observed_mask", lambda t: "past_time_features" in t.names),
    ("future_values", lambda t: "past_time_features" in t.names),
    ("future_time_features", lambda t: "past_time_features" in t.names),
    ("input_features_mask", lambda t: "input_features" in _main(t)),
    ("pixel_attention_mask", lambda t: "spatial_shapes" in t.names and _sees_apart(t)),
    ("spatial_shapes", _sees_apart),
)


# ---- how each is made


def _pixels(taken: Taken) -> torch.Tensor:
    """Return an image; a row of patches where a grid says how they lie; frames where the config counts them."""
    channels, height, width = taken.image
    vision = taken.part("vision")
    if "grid_thw" in taken.names:
        count, size = taken.patches
        return torch.empty(taken.batch * count, size, dtype=taken.dtype, device="meta")
    if "spatial_shapes" in taken.names:
        return taken.floats(*taken.patches)
    frames = taken.number(vision, "num_frames", 0)
    if frames and "pixel_values_videos" not in taken.names:
        return taken.floats(frames, channels, height, width)
    if (
        _has(taken, "keypoint_detector_config", "coarse_matching_skip_softmax")
        or "Matching" in type(taken.model).__name__
    ):
        return taken.floats(2, channels, height, width)
    return taken.floats(channels, height, width)


def _video(taken: Taken) -> torch.Tensor:
    frames = taken.number(taken.part("vision"), "frames_per_clip num_frames", 8)
    return taken.floats(frames, *taken.image)


def _row_of_patches(taken: Taken) -> torch.Tensor:
    """Return the patches of every image in one row, as Qwen's vision encoders take them: the grid tells them apart."""
    count, size = taken.patches
    return torch.empty(taken.batch * count, size, dtype=taken.dtype, device="meta")


def _grids(taken: Taken) -> torch.Tensor:
    return torch.tensor([[1, GRID, GRID]] * taken.batch, dtype=torch.int64, device="cpu")


def _features(taken: Taken) -> torch.Tensor:
    """Return a spectrogram, its frames after the bands where they fill a window, and before them where they vary."""
    if taken.window is not None:
        return taken.floats(taken.bands, taken.window)
    if hasattr(taken.part("audio"), "spec_size"):  # CLAP: a picture of the spectrogram
        return taken.floats(1, 1024, taken.bands)
    return taken.floats(taken.frames, taken.bands)


def _sound(taken: Taken) -> torch.Tensor:
    """Return a waveform; a spectrogram for the transformer that takes one under this name (AST)."""
    audio = taken.part("audio")
    if _describes_prenets(taken) and not _has_prenet(taken, "encoder"):
        return taken.floats(FRAMES, taken.number(audio, "hidden_size", 768))
    bands, length = getattr(audio, "num_mel_bins", None), getattr(audio, "max_length", None)
    if bands and length and hasattr(audio, "frequency_stride"):
        return taken.floats(length, bands)
    if hasattr(audio, "codebook_size") or hasattr(audio, "audio_channels"):  # codecs have a dimension for channels
        return taken.floats(taken.number(audio, "audio_channels", 1), SECOND)
    return taken.floats(SECOND)


def _written_sound(taken: Taken) -> torch.Tensor:
    """Return what a decoder has written so far: a spectrogram, or hidden states where nothing makes these of it."""
    if _has_prenet(taken, "decoder"):
        return taken.floats(TARGET_TOKENS, taken.bands)
    return taken.floats(TARGET_TOKENS, taken.number(taken.config, "hidden_size", 768))


def _places(taken: Taken) -> torch.Tensor:
    """Return 1 for as many tokens of a text as an image gives, which come first, and 0 for the others."""
    mask = taken.whole(taken.tokens)
    mask[:, : taken.number(taken.config, "latent_query_num", 0)] = 1
    return mask


def _series(taken: Taken, length: int) -> torch.Tensor:
    """Return values of a time series, with a dimension for its variables where the model takes several."""
    size = taken.number(taken.config, "input_size num_input_channels", 1)
    one = size == 1 and not hasattr(taken.config, "num_input_channels")
    return taken.floats(length) if one else taken.floats(length, size)


def _past(taken: Taken) -> int:
    """How many past values: the context, and as many before it as the longest lag reaches back."""
    context = taken.number(taken.config, "context_length prediction_length", 64)
    lags: list[int] = getattr(taken.config, "lags_sequence", None) or [0]
    return context + max(lags)


def _future(taken: Taken) -> int:
    return taken.number(taken.config, "prediction_length", 1)


def _time_features(taken: Taken, length: int) -> torch.Tensor:
    return taken.floats(length, taken.number(taken.config, "num_time_features", 0))


def _flattened_patches(taken: Taken) -> torch.Tensor:
    """Return patches that begin with their row and column, which are read as positions: real, all in the corner."""
    side = taken.number(taken.part("vision"), "patch_size", 16)
    return torch.zeros(taken.batch, TOKENS, 2 + 3 * side * side, dtype=taken.dtype, device="cpu")


MAKERS: dict[str, Callable[[Taken], Any]] = {
    "input_ids": lambda t: t.whole(t.tokens, value=t.token),
    "decoder_input_ids": lambda t: t.whole(min(t.tokens, TARGET_TOKENS), value=t.token),
    "qformer_input_ids": lambda t: t.whole(TARGET_TOKENS, value=3),
    "attention_mask": lambda t: t.whole(TOKENS if "flattened_patches" in _main(t) else t.tokens, value=1),
    "image_embeds_position_mask": _places,
    "lang_ids": lambda t: t.whole(),
    "bbox": lambda t: t.whole(t.tokens, 4),
    "pixel_values": _pixels,
    "pixel_values_videos": _video,
    "pixel_attention_mask": lambda t: t.whole(t.patches[0], value=1),
    "spatial_shapes": lambda t: t.whole(2, value=GRID),
    "hidden_states": _row_of_patches,
    "grid_thw": _grids,
    "flattened_patches": _flattened_patches,
    "input_features": _features,
    "input_features_mask": lambda t: t.whole(t.frames, value=1),
    "input_values": _sound,
    "decoder_input_values": _written_sound,
    "inputs": lambda t: t.floats(FRAMES, t.number(t.config, "d_model", 768)),  # Perceiver: anything, once embedded
    "visual_feats": lambda t: t.floats(REGIONS, t.number(t.config, "visual_feat_dim", 2048)),
    "visual_pos": lambda t: t.floats(REGIONS, t.number(t.config, "visual_pos_dim", 4)),
    "states": lambda t: t.floats(STEPS, t.number(t.config, "state_dim", 1)),
    "actions": lambda t: t.floats(STEPS, t.number(t.config, "act_dim", 1)),
    "rewards": lambda t: t.floats(STEPS, 1),
    "returns_to_go": lambda t: t.floats(STEPS, 1),
    "timesteps": lambda t: t.whole(STEPS),
    "past_values": lambda t: _series(t, _past(t)),
    "past_time_features": lambda t: _time_features(t, _past(t)),
    "past_observed_mask": lambda t: t.whole(_past(t), value=1).to(torch.bool),
    "past_values_padding": lambda t: t.whole(_past(t)),
    "freq": lambda t: t.whole(1),
    "future_values": lambda t: _series(t, _future(t)),
    "future_time_features": lambda t: _time_features(t, _future(t)),
    "audio_mel": lambda t: t.floats(FRAMES, t.bands),
    "audio_mel_mask": lambda t: t.whole(FRAMES).to(torch.bool),  # True where nothing is
}

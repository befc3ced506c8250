"""hf: a config alone makes the model and its inputs. That the inputs are right, a real forward says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

from torchledger import analyze
from torchledger.errors import UserError
from torchledger.sources import Example, build, resolve

# Three layers of 8 numbers a token, 2 heads of 4 over 1 of keys and values, a gated net of 16, 11 words, 6 positions.
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 16,
    "vocab_size": 11,
    "max_position_embeddings": 6,
    "dtype": "bfloat16",
}
# A token's macs in a layer: queries and output 8 x 8, keys and values 8 x 4, three matrices 8 x 16, and two products of
# attention with 6 keys of 8 numbers.
LAYER = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16 + 2 * 6 * 8
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def written(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({**LLAMA, **changes}))
    return path


def opened(text: str, arguments: dict[str, object] | None = None, batch: int = 1) -> tuple[Any, Example]:
    built = build(resolve(text), arguments, device="meta")
    assert built.on_meta and built.example is not None
    assert all(p.is_meta for p in built.model.parameters())
    return built.model, built.example(batch, torch.float32)


# ---- the model


@pytest.mark.parametrize("layers", [None, 2])
def test_config_file_or_its_folder(tmp_path: Path, layers: int | None) -> None:
    path = written(tmp_path / "config.json", layer_types=["full_attention"] * 3)
    arguments: dict[str, object] = {} if layers is None else {"num_hidden_layers": layers}  # cuts layer_types too
    for text in (f"hf:{path}", f"hf:{tmp_path}"):
        model, example = opened(text, arguments)
        assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.bfloat16
        total = analyze(model, kwargs=example.kwargs).totals()
        assert total["macs"] == 6 * ((layers or 3) * LAYER + 8 * 11)  # and the head
        assert total["unknown"] == 0


def test_model_type_stands_for_its_default_config() -> None:
    model, example = opened("hf:bert", {"num_hidden_layers": 1})
    assert type(model).__name__ == "BertModel" and len(model.encoder.layer) == 1
    assert model.config.hidden_size == 768 and example.kwargs["input_ids"].shape == (1, 128)


def test_part_of_a_config_keeps_its_other_fields() -> None:
    model, _ = opened("hf:clip", {"text_config.num_hidden_layers": 1, "vision_config.image_size": 64})
    assert (len(model.text_model.encoder.layers), len(model.vision_model.encoder.layers)) == (1, 12)
    # RT-DETR's default has a backbone that gives three stages; by itself that backbone's config gives one.
    changed, _ = opened("hf:rt_detr", {"backbone_config.embedding_size": 32})
    assert changed.config.backbone_config.out_features == ["stage2", "stage3", "stage4"]
    assert changed.config.backbone_config.embedding_size == 32


def test_number_of_classes_is_the_number_of_labels() -> None:
    arguments = {**TINY, "architectures": ["BertForSequenceClassification"], "num_classes": 7}
    model, _ = opened("hf:bert", arguments)
    assert model.classifier.out_features == 7


def test_attention_is_one_operation_where_it_can_be(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", _attn_implementation="eager", attn_implementation="kernels-community/flash")
    model, example = opened(f"hf:{path}")
    assert model.config._attn_implementation == "sdpa"
    # funnel has no such attention
    assert opened("hf:funnel", {"block_sizes": [1], "d_model": 16})[0].config._attn_implementation == "eager"
    assert example.kwargs["input_ids"].shape == (1, 6)


# ---- its inputs

SPEECH: dict[str, object] = {
    "hidden_size": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16,
}  # fmt: skip

KINDS: dict[str, tuple[dict[str, object], dict[str, tuple[int, ...]]]] = {
    "bert": (TINY, {"input_ids": (2, 128)}),
    # 40 positions; RoBERTa's begin after its padding token, 1
    "roberta": ({**TINY, "max_position_embeddings": 40}, {"input_ids": (2, 38)}),
    # 512 positions less 2; a position table that is no nn.Embedding
    "ibert": (TINY, {"input_ids": (2, 128)}),
    "layoutlm": (TINY, {"input_ids": (2, 128), "bbox": (2, 128, 4)}),
    "t5": (
        {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        {"input_ids": (2, 128), "decoder_input_ids": (2, 32)},
    ),
    "vit": ({**TINY, "image_size": 32, "num_channels": 1}, {"pixel_values": (2, 1, 32, 32)}),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}, {"pixel_values": (2, 3, 224, 224)}),
    "videomae": ({**TINY, "image_size": 32, "num_frames": 4}, {"pixel_values": (2, 4, 3, 32, 32)}),
    "clip": (
        {f"{part}_config.{name}": value for part in ("text", "vision") for name, value in TINY.items()},
        {"input_ids": (2, 77), "pixel_values": (2, 3, 224, 224)},  # 77 positions
    ),
    "vilt": ({**TINY, "image_size": 64}, {"input_ids": (2, 40), "pixel_values": (2, 3, 64, 64)}),
    "qwen2_5_vl_vision": (
        {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16},
        # 256 patches an image, each of 3 channels x 2 frames x 14 x 14
        {"hidden_states": (512, 1176), "grid_thw": (2, 3)},
    ),
    "siglip2": (
        {f"{part}_config.{name}": value for part in ("text", "vision") for name, value in TINY.items()}
        | {"text_config.projection_size": 16},
        {"input_ids": (2, 64), "pixel_values": (2, 256, 768), "pixel_attention_mask": (2, 256),
         "spatial_shapes": (2, 2)},
    ),
    "wav2vec2": ({**TINY, "num_conv_pos_embedding_groups": 2}, {"input_values": (2, 16000)}),
    "audio-spectrogram-transformer": (TINY, {"input_values": (2, 1024, 128)}),
    "encodec": ({"num_filters": 4, "hidden_size": 16, "codebook_dim": 16}, {"input_values": (2, 1, 16000)}),
    # 1500 positions after a stride of 2, 80 bands
    "whisper": (
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
        {"input_features": (2, 80, 3000), "decoder_input_ids": (2, 32)},
    ),
    "speech_to_text": (
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2},
        {"input_features": (2, 128, 80), "decoder_input_ids": (2, 32)},
    ),
    # two frames of 80 bands in one
    "wav2vec2-bert": (TINY, {"input_features": (2, 128, 160)}),
    "decision_transformer": (
        {"hidden_size": 16, "n_layer": 1, "n_head": 2},
        {"states": (2, 20, 17), "actions": (2, 20, 4), "rewards": (2, 20, 1), "returns_to_go": (2, 20, 1),
         "timesteps": (2, 20)},
    ),
    # a context of 12, and 7 before it for the longest lag
    "time_series_transformer": (
        {"prediction_length": 12, "num_time_features": 2},
        {"past_values": (2, 19), "past_time_features": (2, 19, 2), "past_observed_mask": (2, 19),
         "future_values": (2, 12), "future_time_features": (2, 12, 2)},
    ),
    "lxmert": (
        {"hidden_size": 16, "num_attention_heads": 2, "l_layers": 1, "x_layers": 1, "r_layers": 1},
        {"input_ids": (2, 128), "visual_feats": (2, 36, 2048), "visual_pos": (2, 36, 4)},
    ),
    # one language for each sample
    "xmod": (TINY, {"input_ids": (2, 128), "lang_ids": (2,)}),
    # without the nets before its encoder and decoder: hidden states of 128 and 32 steps
    "speecht5": (SPEECH, {"input_values": (2, 128, 16), "decoder_input_values": (2, 32, 16)}),
    # frames of the size that its prompt is drawn in
    "tvp": (
        {**TINY, "num_frames": 3, "max_img_size": 64, "visual_prompt_size": 8,
         "backbone_config.embedding_size": 8, "backbone_config.hidden_sizes": [8, 8, 8, 8],
         "backbone_config.depths": [1, 1, 1, 1]},
        {"input_ids": (1, 128), "pixel_values": (1, 3, 3, 64, 64)},
    ),
    "kosmos-2": (
        {"text_config.embed_dim": 16, "text_config.layers": 1, "text_config.ffn_dim": 16,
         "text_config.attention_heads": 2, "latent_query_num": 7}
        | {f"vision_config.{name}": value for name, value in TINY.items()},
        {"input_ids": (2, 128), "pixel_values": (2, 3, 224, 224), "image_embeds_position_mask": (2, 128)},
    ),
    # channels and size are the backbone's
    "vitmatte": (
        {"hidden_size": 16, "fusion_hidden_sizes": [8, 8, 8, 8], "convstream_hidden_sizes": [8, 8, 8],
         "backbone_config.num_channels": 4, "backbone_config.hidden_size": 16, "backbone_config.image_size": 32,
         "backbone_config.num_attention_heads": 2},
        {"pixel_values": (2, 4, 32, 32)},
    ),
}  # fmt: skip
ONE_SAMPLE = ("tvp",)  # whose model views a table of positions as if it had a batch


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_what_a_real_forward_takes(kind: str) -> None:
    arguments, expected = KINDS[kind]
    built = build(resolve(f"hf:{kind}"), arguments)
    assert not built.on_meta and built.example is not None
    given = built.example(1 if kind in ONE_SAMPLE else 2, torch.float32).kwargs
    assert {name: tuple(tensor.shape) for name, tensor in given.items()} == expected
    for tensor in given.values():  # what is read as a value is there; the rest takes no memory
        assert tensor.is_meta == tensor.dtype.is_floating_point
    real = tree_map_only(torch.Tensor, lambda t: torch.randn(t.shape) if t.is_meta else t, dict(given))
    with torch.no_grad():
        built.model.eval()(**real)


def test_patches_come_with_the_mask_of_those_that_count() -> None:
    tiny = {"hidden_size": 16, "d_kv": 8}
    arguments: dict[str, object] = {
        **{f"text_config.{name}": value for name, value in {**tiny, "num_layers": 1, "num_heads": 2}.items()},
        **{f"vision_config.{name}": value for name, value in {**TINY, **tiny}.items() if name != "intermediate_size"},
    }
    model, example = opened("hf:pix2struct", arguments, batch=2)
    # a row and a column before 16 x 16 pixels of 3 channels
    assert {name: tuple(tensor.shape) for name, tensor in example.kwargs.items()} == {
        "flattened_patches": (2, 128, 770),
        "attention_mask": (2, 128),
        "decoder_input_ids": (2, 32),
    }
    # without it the model looks for patches that are not all 0, which an analysis does not know
    assert analyze(model, kwargs=example.kwargs, execute=False).assumptions == []


def test_ids_mean_nothing_special(tmp_path: Path) -> None:
    path = written(tmp_path / "c.json", bos_token_id=3, eos_token_id=[4, 5], pad_token_id=6)
    assert opened(f"hf:{path}")[1].kwargs["input_ids"].unique().tolist() == [7]


def test_images_have_the_dtype_that_is_asked_for() -> None:
    built = build(resolve("hf:vit"), {"num_hidden_layers": 1}, device="meta")
    assert built.example is not None
    assert built.example(1, torch.bfloat16).kwargs["pixel_values"].dtype == torch.bfloat16


# ---- a config is data


def test_code_of_its_own_is_refused_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "modeling_own.py").write_text("raise SystemExit('ran')\n")
    own = {"AutoConfig": "modeling_own.Config", "AutoModel": "modeling_own.Net"}
    unknown = written(tmp_path / "config.json", model_type="own", auto_map=own)
    with pytest.raises(UserError, match=r"needs code that comes with its weights \(model_type 'own', auto_map\)"):
        build(resolve(f"hf:{unknown}"))
    known = written(tmp_path / "config.json", auto_map=own)
    assert type(opened(f"hf:{known}")[0]).__module__ == "transformers.models.llama.modeling_llama"


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder 'meta-llama/x', and nothing is downloaded here"):
        resolve("hf:meta-llama/x")
    fields = {"model_type": "detr", "backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18",
              "use_pretrained_backbone": True, "out_indices": [4]}, "use_pretrained_backbone": True,
              "encoder_layers": 1, "decoder_layers": 1}  # fmt: skip
    path = tmp_path / "detr.json"
    path.write_text(json.dumps(fields))
    assert type(opened(f"hf:{path}")[0]).__name__ == "DetrModel"


def test_quantisation_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "c.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    model, _ = opened(f"hf:{path}")
    assert model.dtype == torch.bfloat16 and not hasattr(model.config, "quantization_config")
    assert capsys.readouterr().err.endswith("quantization_config is left out, and the model counted as it is without\n")


@pytest.mark.parametrize(
    ("content", "arguments", "match"),
    [
        ("{", {}, "is no config: it is not JSON"),
        ("[1]", {}, "is no config: it holds a list, not fields by name"),
        ("{}", {}, "has no model_type: a config of transformers says one, such as llama"),
        ({"model_type": "lama"}, {}, "has no model type 'lama'. Did you mean 'llama'"),
        (
            {"architectures": ["LlamaForCausalLMs"]},
            {},
            "which transformers .* has not. Did you mean 'LlamaForCausalLM'",
        ),
        ({"architectures": ["LlamaConfig"]}, {}, "names the architecture 'LlamaConfig', which transformers"),
        ({}, {"num_hiden_layers": 1}, "has no field 'num_hiden_layers'. Did you mean 'num_hidden_layers'"),
        ({}, {"rope.x": 1}, "has no field 'rope.x'"),
        ({"hidden_size": "wide"}, {}, "is refused by LlamaConfig: .*hidden_size"),
        ({"num_attention_heads": 3}, {}, "is refused by LlamaConfig: .*heads"),
        ({"hidden_act": "rulu"}, {}, "failed: KeyError: 'rulu'"),
        ({"model_type": "sam2_mask_decoder", "architectures": None}, {}, "has no model of its own for 'sam2_mask_deco"),
    ],
)
def test_errors(tmp_path: Path, content: Any, arguments: dict[str, object], match: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps({**LLAMA, **content}))
    with pytest.raises(UserError, match=match) as caught:
        build(resolve(f"hf:{path}"), arguments, device="meta")
    assert "\n" not in str(caught.value)


def test_folder_without_config_and_misspelt_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder '.*' holds no config\.json"):
        resolve(f"hf:{tmp_path}")
    written(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"no config '.*confg\.json'. Did you mean 'config\.json'"):
        resolve(f"hf:{tmp_path}/confg.json")


def test_input_that_no_rule_makes_is_named() -> None:
    built = build(resolve("hf:seggpt"), {"num_hidden_layers": 1}, device="meta")
    assert built.example is not None
    with pytest.raises(
        UserError, match=r"SegGptModel takes 'prompt_pixel_values', which is not known here: give all of"
    ):
        built.example(1, torch.float32)

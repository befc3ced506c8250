"""The model types of transformers with fewer layers, and the proof that the inputs which torchledger makes are right.

    python benchmarks/hf_models.py --list              every type that has a model
    python benchmarks/hf_models.py --check [TYPE ...]  build each for real, run its forward once, say which do not run

`reduced(kind)` is for other benchmarks too: the type's default config with as few layers as show every kind of layer,
narrow feed-forward nets and few experts, so that hundreds of architectures run on a laptop.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

LAYERS = 2
WIDTH = 512
EXPERTS = 8
VOCABULARY = 32_768  # a table of words costs memory, and no arithmetic
SECONDS = 60  # a type
TOKENS = 16  # of a text in the proof, which is about what goes in and not about how much
DRAWN_BELOW = 200_000_000  # parameters: of more, the values are as they lie in memory

# Names of fields, with any words before them.
_LAYERS = re.compile(
    r"((num|n|hidden|encoder|decoder|text|vision|attention|transformer|predictor|dec|enc|mtp)_)*(layers?|depth)"
)
_WIDTHS = re.compile(
    r"((moe|shared_expert|expert|dense|encoder|decoder|mlp)_)*(intermediate_size|ffn_dim|ffn_hidden_size)|d_ff|n_inner"
)
_EXPERTS = re.compile(r"(num|n)_((local|routed)_)?experts|moe_num_experts|num_moe_experts")
_VOCABULARIES = re.compile(r"([a-z0-9]+_)*vocab_size")

_RESNET = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
# A rotation of half of each head, in three parts (GLM-4.1V's).
_HALF_ROTATED = {
    "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12],
}  # fmt: skip
_ONE_STAGE = {"model_type": "resnet", "out_features": ["stage4"]}
# What a type's default config leaves out, though its model does not run without: a published model's, or the least.
FACTS: dict[str, dict[str, Any]] = {
    # Published as vitmatte-small: the image has a fourth channel, for what is known of the matte.
    "vitmatte": {
        "fusion_hidden_sizes": [256, 128, 64, 32],  # a list: the default is a tuple, which its model cannot add to
        "backbone_config.num_channels": 4,
        "backbone_config.hidden_size": 384,
        "backbone_config.num_attention_heads": 6,
        "backbone_config.image_size": 512,
        "backbone_config.out_features": ["stage12"],
        "backbone_config.out_indices": [12],
    },
    "detr": {"backbone_config": _ONE_STAGE},
    "conditional_detr": {"backbone_config": _ONE_STAGE},
    "dab-detr": {"backbone_config": _ONE_STAGE},
    "table-transformer": {"backbone_config": _ONE_STAGE},
    "deformable_detr": {"backbone_config": _RESNET},
    "time_series_transformer": {"prediction_length": 12},
    "autoformer": {"prediction_length": 12},
    "informer": {"prediction_length": 12},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "aya_vision": {"vision_config.num_attention_heads": 16},  # 14 do not divide its 1152
    **{kind: {"text_config.rope_parameters": _HALF_ROTATED} for kind in ("glm4v", "glm46v", "glm_image", "glmga")},
    **{kind: {"rope_parameters": _HALF_ROTATED} for kind in ("glm4v_text", "glm_image_text")},
    **{kind: {"num_hidden_layers": 5} for kind in ("eomt", "eomt_dinov3")},  # queries come in before the last four
    "gemma3n": {"text_config.num_kv_shared_layers": 0},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "chameleon": {"vocabulary_map": {"<image>": 100}},
    "emu3": {"vocabulary_map": {"<image>": 100, "<|extra_200|>": 101}},
}


def kinds() -> list[str]:
    """Return the model types that transformers has a model for."""
    from torchledger.sources.libraries import imported

    auto = imported("transformers", "transformers.models.auto.modeling_auto")
    names = imported("transformers", "transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    tables = [
        getattr(auto, name) for name in vars(auto) if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES")
    ]
    return [kind for kind in names if any(kind in table for table in tables)]


def arguments(kind: str) -> dict[str, Any]:
    """Return what to change in a type's default config, as `--arg` would have it."""
    from torchledger.sources.transformers_models import make_config

    facts = FACTS.get(kind, {})
    return {**dict(_smaller(make_config({"model_type": kind}, facts, kind))), **facts}


def reduced(kind: str) -> Any:
    """Return the reduced config of a type."""
    from torchledger.sources.transformers_models import make_config

    return make_config({"model_type": kind}, arguments(kind), kind)


def _smaller(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if _LAYERS.fullmatch(name) and not _has_stages(config) and value > (few := _few_layers(config)):
            yield path + name, few
        elif _WIDTHS.fullmatch(name) and value > WIDTH:
            yield path + name, WIDTH
        elif _EXPERTS.fullmatch(name) and value > (few := _few_experts(config)):
            yield path + name, few
        elif _VOCABULARIES.fullmatch(name) and value > VOCABULARY > (getattr(config, "pad_token_id", None) or 0):
            yield path + name, VOCABULARY
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if hasattr(inner, "sub_configs"):
            yield from _smaller(inner, f"{path}{name}.")


def _has_stages(config: Any) -> bool:
    """Whether layers are counted by stage, or taken by number: fewer of them would be another architecture."""
    return any(getattr(config, name, None) for name in ("depths", "stage_names", "out_features", "out_indices"))


def _few_layers(config: Any) -> int:
    """Return how many layers from the first on show each kind of layer that the config names, LAYERS at least."""
    kinds_of_layers = next(
        (
            found
            for name in ("layer_types", "layers_block_type", "block_types", "mlp_layer_types")
            if isinstance(found := getattr(config, name, None), (list, tuple)) and found
        ),
        [0],
    )
    return max(LAYERS, 1 + max(list(kinds_of_layers).index(kind) for kind in set(kinds_of_layers)))


def _few_experts(config: Any) -> int:
    """Return EXPERTS, or as many as a token asks for, or two for each group where their two best choose the group."""
    asked, groups = (getattr(config, name, None) or 0 for name in ("num_experts_per_tok", "n_group"))
    return max(EXPERTS, asked, 2 * groups)


# ---- the proof


def check(kind: str) -> str:
    """Build a type for real, run its forward on its inputs, and return what ran. Raises what the model raises."""
    import torch
    from torch.utils._pytree import tree_map_only

    from torchledger.sources import transformers_inputs
    from torchledger.sources.libraries import without_network
    from torchledger.sources.transformers_models import architecture

    with without_network(kind):
        config = reduced(kind)
        model_class = architecture(config, kind)
        # Values as they lie in memory do for most; a few models look at theirs, and draw them.
        from transformers.initialization import no_init_weights

        def run(drawn: bool) -> str:
            torch.manual_seed(0)
            with contextlib.nullcontext() if drawn else no_init_weights():
                model = model_class._from_config(copy.deepcopy(config)).eval()
            given = transformers_inputs.example(model, 2, torch.float32)
            real = tree_map_only(torch.Tensor, lambda t: 0.1 * torch.randn(t.shape) if t.is_meta else t, given)
            with torch.no_grad():
                model(**real)
            sizes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in given.items())
            return f"{model_class.__name__}({sizes})"

        try:
            return run(drawn=False)
        except LookupError:
            raise
        except (ValueError, RuntimeError):
            if _parameters(model_class, config) > DRAWN_BELOW:
                raise
            return run(drawn=True)


def _parameters(model_class: Any, config: Any) -> int:
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in model_class._from_config(copy.deepcopy(config)).parameters())


def _in_child(kind: str) -> tuple[bool, str]:
    """Check in a process of its own, which may die or take too long."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                text = "+" + check(kind)
        except BaseException as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "/models/" in f.filename]
            where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
            text = f"-{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"
        os.write(writer, text.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read().decode()
    _, status = os.waitpid(child, 0)
    if not text:
        return False, f"took more than {SECONDS} s" if os.WTERMSIG(status) == signal.SIGALRM else f"died ({status})"
    return text[0] == "+", text[1:]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the types")
    parser.add_argument("--check", nargs="*", metavar="TYPE", help="run these for real (all where none is named)")
    given = parser.parse_args()
    if given.list:
        print("\n".join(kinds()))
    if given.check is None:
        return
    import torch

    from torchledger.sources import transformers_inputs
    from torchledger.sources.libraries import imported

    transformers_inputs.TOKENS = TOKENS
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    imported("transformers").logging.set_verbosity_error()
    imported("transformers", "transformers.modeling_utils")  # once, before the forks
    ran, total = 0, 0
    for kind in given.check or kinds():
        began = time.perf_counter()
        ok, said = _in_child(kind)
        ran, total = ran + ok, total + 1
        print(f"{'ok  ' if ok else 'FAIL'} {kind}: {said} [{time.perf_counter() - began:.1f} s]", flush=True)
    print(f"{ran} of {total} run")
    sys.exit(ran < total)


if __name__ == "__main__":
    main()

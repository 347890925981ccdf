"""What people hand over in place of a plain checkpoint, recognised and named, with what to do about it.

Adapters, quantized weights, the states of trainers, files of other programs, names on a hub. Nothing is opened but
small JSON files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ayaedge.errors import CheckpointError
from ayaedge_export.checkpoint.files import missing_file, read_settings

_GIVE = "give the directory that holds config.json and the *.safetensors files"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_WITHOUT_WEIGHTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
_STEPS = "checkpoint-*/config.json"
_ELSEWHERE = {
    "manifest.json": "{path} is a bundle already; export takes the checkpoint that it was made from",
    "*.gguf": "{path} holds a GGUF file ({name}); export takes the original checkpoint with its *.safetensors files",
    "*.onnx": "{path} holds an ONNX graph ({name}); export takes the original checkpoint with its *.safetensors files",
    "*.nemo": "{path} holds a NeMo archive ({name}); export it to Hugging Face's form first",
    "params.json": "{path} holds weights in their authors' own form ({name}); convert them first",
}
_TRAINER_FILES = {
    "zero_to_fp32.py": "DeepSpeed's training state; make a checkpoint of it with: python zero_to_fp32.py . OUTPUT "
    "--safe_serialization",
    "global_step*": "DeepSpeed's training state; make a checkpoint of it with zero_to_fp32.py",
    "pytorch_model_fsdp_*": "FSDP's training state; make a checkpoint of it with: accelerate merge-weights "
    "pytorch_model_fsdp_0 OUTPUT",
    "*.distcp": "a distributed training state; make a checkpoint of it with: accelerate merge-weights . OUTPUT",
    "consolidated*.safetensors": "weights in their authors' own form; convert them to Hugging Face's form first",
    "consolidated*.pth": "weights in their authors' own form; convert them to Hugging Face's form first",
}
_QUANTIZED_FILES = {
    "quantize_config.json": "gptq", "quant_config.json": "awq", "quanto_qmap.json": "quanto",
    "hf_quant_config.json": "modelopt", "qmodel.pt": "hqq",
}  # fmt: skip
_QUANTIZED_NAMES = {
    r"\.quant_state\.bitsandbytes__|\.absmax$|\.quant_map$": "bitsandbytes (4 bits)",
    r"\.SCB$|\.weight_format$": "bitsandbytes (8 bits)",
    r"\.g_idx$": "gptq",
    r"\.qweight$|\.qzeros$": "awq or gptq",
    r"\.weight_packed$|\.weight_zero_point$": "compressed-tensors",
    r"\.W_q$": "hqq",
    r"\.weight\._(?:data|scale)$": "quanto",
    r"\.weight_scale(?:_inv|_2)?$": "fp8 or int8 with scales",
}
_WRAPPED = re.compile(r"(?:^|\.)(module|_orig_mod|_fsdp_wrapped_module|_forward_module)\.")
_ADAPTED = re.compile(r"^base_model\.model\.|\.lora_(?:A|B|embedding_A|magnitude_vector)\b|\.base_layer\.")
_MERGE = "merge it with peft's merge_and_unload() and save_pretrained(), then export that"


def check_directory(directory: Path) -> None:
    """Raise CheckpointError unless `directory` is one that has a config.json; it says what is there instead."""
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file; {_GIVE}: {directory.parent}")
    if not directory.is_dir():
        raise CheckpointError(_missing_directory(directory))
    if (directory / "config.json").is_file():
        return
    if (directory / "config.json").is_symlink():
        raise CheckpointError(f"the checkpoint {directory}: {missing_file(directory / 'config.json')}")
    if _adapter_files(directory):
        raise CheckpointError(f"{directory} is {_adapter(directory)} only, not a whole model: {_MERGE}")
    raise CheckpointError(_something_else(directory))


def _missing_directory(directory: Path) -> str:
    if directory.is_symlink():
        return f"{directory} is a link to {directory.readlink()}, which is missing"
    told = f"there is no checkpoint directory at {directory}"
    name = directory.as_posix()
    if _HUB_NAME.fullmatch(name) and not directory.parent.is_dir() and ".." not in name:
        told += (
            f"; if it is a model on the Hugging Face hub, download it first: hf download {name} --local-dir "
            f"{directory.name}, then export {directory.name}"
        )
    return told


def _something_else(directory: Path) -> str:
    """What a directory without config.json seems to be."""
    inside = sorted(directory.glob("snapshots/*/config.json")) or sorted(directory.glob(_STEPS))
    if inside:
        return f"{directory} holds checkpoints, but is none: give one of them, such as {inside[-1].parent}"
    for pattern, told in _ELSEWHERE.items():
        if found := sorted(directory.glob(pattern)):
            return told.format(path=directory, name=found[0].name)
    if state := trainer_state(directory):
        return f"{directory} is not a checkpoint: it has no config.json; {state}"
    return f"{directory} is not a checkpoint: it has no config.json ({_GIVE})"


def trainer_state(directory: Path) -> str:
    """A sentence on weights that lie here in a form that no program loads as it is; empty if there are none."""
    for pattern, told in _TRAINER_FILES.items():
        if found := sorted(directory.glob(pattern)):
            return f"{found[0].name} is {told}"
    return ""


def adapter_faults(directory: Path) -> list[str]:
    """A fault if an adapter lies next to the weights: they would be exported without it."""
    found = _adapter_files(directory)
    if not found:
        return []
    told = (
        f"{' and '.join(found)} next to the weights: {_adapter(directory)}, which an export would leave out; {_MERGE}, "
        "or move these files away"
    )
    return [told]


def _adapter_files(directory: Path) -> list[str]:
    return [name for name in _ADAPTER_FILES if (directory / name).exists()]


def _adapter(directory: Path) -> str:
    """What kind of adapter lies in `directory`, and of which model."""
    try:
        settings = read_settings(directory / "adapter_config.json")
        settings = settings if isinstance(settings, dict) else {}
    except (OSError, ValueError):
        settings = {}
    kind = (
        "DoRA"
        if settings.get("use_dora")
        else {"LORA": "LoRA"}.get(kind := str(settings.get("peft_type") or "LORA"), kind)
    )
    base = settings.get("base_model_name_or_path") or "a model that it does not name"
    told = f"a {kind} adapter of {base}"
    return told + ", whose kind cannot be merged," * (kind in _WITHOUT_WEIGHTS)


def quantized_by(directory: Path, config: Mapping[str, Any]) -> str:
    """With what the files of settings say that the weights were quantized; empty if with nothing."""
    for part in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config", "quantization"):
            settings = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(settings, Mapping) and settings:
                return _method(key, settings)
    return next((told for name, told in _QUANTIZED_FILES.items() if (directory / name).exists()), "")


def _method(key: str, settings: Mapping[str, Any]) -> str:
    bits = settings.get("bits") or settings.get("w_bit")
    for load, count in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        bits = count if settings.get(load) is True or settings.get(f"_{load}") is True else bits
    method = settings.get("quant_method")
    if not isinstance(method, str):
        loads = any(str(name).startswith(("load_in_", "_load_in_", "bnb_")) for name in settings)
        method = "bitsandbytes" if loads else "compressed-tensors" if key == "compression_config" else "MLX"
    return f"{method} ({bits} bits)" if isinstance(bits, int) else method


def quantized_fault(method: str, *, whole: bool = False) -> str:
    """What to tell of weights that were quantized by `method`, or are `whole` all the same."""
    told = f"the weights were quantized by {method}, which loses what an export needs: export the original checkpoint"
    if whole:
        told += ", or if these are whole weights again, remove what says otherwise (quantization_config in config.json)"
    return told


def foreign_tensors(types: Mapping[str, str], forms: Collection[str]) -> str:
    """A sentence on tensors that no plain checkpoint has, by their stored names and types; empty if there are none.

    `forms` are what the files call their form themselves (`pt`, `mlx`).
    """
    if any(_ADAPTED.search(name) for name in types):
        return f"the weights hold an adapter's tensors, as peft names them: {_MERGE}"
    if any(kind == "U32" for kind in types.values()) and any(name.endswith(".scales") for name in types):
        return quantized_fault("MLX")
    for pattern, method in _QUANTIZED_NAMES.items():
        if any(re.search(pattern, name) for name in types):
            return quantized_fault(method)
    if any(kind.startswith("F8_") for kind in types.values()):
        return quantized_fault("fp8")
    if "mlx" in forms:
        return "the weights are in MLX's form, which orders some of them in another way: export the original checkpoint"
    wrapped = next(filter(None, map(_WRAPPED.search, types)), None)
    if wrapped:
        return (
            f"the tensors' names hold {wrapped[1]!r}, which a wrapper of the trainer has added: save the model inside "
            "it (accelerator.unwrap_model(model).save_pretrained(...))"
        )
    return ""

"""A DINOv2-shaped ViT in an ONNX file -> weights for `method.backbone.weights`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import storage
from cluster.config import table_of
from cluster.errors import PlethoraError
from finetune.networks import onnx_vit, weights
from finetune.networks.backbone import create
from finetune.networks.origin import FILE, UNSTATED, Origin
from finetune.reports.sheet import Section, Sheet
from pretrain.importing.checkpoint import digest


@dataclass(frozen=True)
class ImportVision:
    """`name`: timm's, of the model that the file holds; `sets`: options of timm's model, for sizes of your
    own; `licence` and `origin`: of the weights, as their publisher states them.
    """

    file: str
    name: str
    out: str
    sets: Sequence[str] = ()
    licence: str = UNSTATED
    origin: str = UNSTATED


def run(options: ImportVision) -> Sheet:
    """model.safetensors and origin.json in the folder `out`. PlethoraError: the file is no ONNX file or lacks
    a part, it holds another model, or the model's tokens are not those of the graph.
    """
    from safetensors.torch import save_file

    out = Path(options.out)
    if (out / "model.safetensors").exists():
        raise PlethoraError(f"--out {out} holds model.safetensors already: give another folder")
    vit = create(options.name, table := table_of(options.sets))
    found = onnx_vit.trunk(options.file)
    where = f"{options.file} holds no weights of {options.name}"
    weights.put(vit, found.state, where, "name the model that it is of with --as")
    apart = onnx_vit.largest_difference(found, vit, options.file)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous() for name, x in vit.state_dict().items()}, out / "model.safetensors")
    known = Origin(
        weights=digest(str(out / "model.safetensors")),
        name=options.name,
        options=table,
        image=onnx_vit.native(vit),
        mean=vit.pretrained_cfg["mean"],
        std=vit.pretrained_cfg["std"],
        file=Path(options.file).name,
        sha256=digest(options.file),
        licence=options.licence,
        origin=options.origin,
        difference=apart,
    )
    (out / FILE).write_bytes(storage.json_bytes(known.model_dump(mode="json")))
    count = sum(p.numel() for p in vit.parameters())
    facts = (
        f"{count:,} parameters; tokens differ from the graph's by at most {apart:.1e} on two drawn images of "
        f"{known.image[0]} x {known.image[1]}",
        f"licence {known.licence}, origin of the weights {known.origin}",
        f"use: --set method.backbone.name={options.name} "
        f"--set method.backbone.weights={out / 'model.safetensors'}",
    )
    section = Section(f"{known.file} as {options.name}", facts=facts)
    results = {**known.model_dump(mode="json"), "out": str(out.resolve())}
    return Sheet("import-vision", section.title, (), (section,), results)

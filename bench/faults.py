"""Plant one fault in a random layer of a healthy network: does check point at that layer?"""

from __future__ import annotations

import math
import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import steadygrad as sg
from bench.library import LIBRARY
from bench.patients import summary
from bench.table import Row, markdown, publish
from steadygrad.core.report import Report
from steadygrad.testing import Case, Patient, data, nets

FAULTS = ("weight x 1e-3", "weight x 1e-2", "weight x 30", "weight x 1e3", "bias - 10", "NaN")
EACH = 5  # injections per fault and network
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
SEEN = ("gpt2", "llama", "vit", "resnet", "mobilenet-v2")  # their misses were studied and repaired
HELD_OUT = ("bert", "t5", "whisper", "swin", "convnext", "monai-unet", "diffusers-unet")


@dataclass(frozen=True, slots=True)
class Injection:
    """One planted fault, and the place of its layer among the suspects (0: first).

    `exact`: the first suspect is the layer itself (or shares its weight), no activation or block.
    `chance`: the share of the other layers that the same first suspect would have hit.
    """

    net: str
    fault: str
    layer: str
    place: int | None
    suspects: tuple[str, ...]
    said: str
    exact: bool = False
    chance: float = 0.0

    def within(self, first: int) -> bool:
        """Whether the layer is among the first suspects."""
        return self.place is not None and self.place < first


def _transformer() -> Case:
    x, _ = data.tokens()
    return Case(nets.Transformer(8), x)


def _on(make: Callable[[], nn.Module], draw: Callable[[], tuple[Tensor, Tensor]]) -> Case:
    return Case(make(), draw()[0])


NETS: tuple[Patient, ...] = (
    Patient("MLP-30", lambda: _on(lambda: nets.fill(nets.Chain(), nets.he), data.digits)),
    Patient("VGG-10", lambda: _on(nets.vgg10, data.images)),
    Patient("ResNet-20-BN", lambda: _on(nets.ResNet20, data.images)),
    Patient("pre-LN-8", _transformer),
    Patient("U-Net", lambda: _on(nets.UNet, data.images)),
)


def run(each: int = EACH, offset: int = 0) -> None:
    """Hold the exam on the nets it was tuned on, and on others; write faults.md."""
    warnings.simplefilter("ignore")
    known = [one for net in NETS for one in _injections(net, each, offset)]
    seen = [one for net in _library(SEEN) for one in _injections(net, each, offset + 1000)]
    unseen = [one for net in _library(HELD_OUT) for one in _injections(net, each, offset + 2000)]
    publish(
        "faults",
        "Injected faults: is the layer named?",
        [
            f"{each} injections per fault and network, seeds from {offset}; suspects are the "
            "places of the findings, then of the folded ones, in order. A hit is the layer, one "
            "that shares its weight, the activation right behind it, or the innermost block "
            "around it. Exact: the layer itself. Control: how often the same first suspect would "
            "have hit another layer of the network, had the fault been there.",
            "## Known networks (asked: 140 first, 148 in the first three, of 150)\n\n"
            + _score(known),
            "## Other libraries, whose misses were studied\n\n" + _score(seen),
            "## Other libraries, held out (prototype: 86 and 93 of 100)\n\n" + _score(unseen),
            "## Not first\n\n" + _misses(known + seen + unseen),
        ],
    )


def _library(names: Sequence[str]) -> list[Patient]:
    return [net for net in LIBRARY if net.name in names]


def _injections(net: Patient, each: int, offset: int) -> Iterator[Injection]:
    for number, fault in enumerate(FAULTS):
        for repeat in range(each):
            case = net.build(offset + each * number + repeat)
            draw = random.Random(f"{net.name} {fault} {offset + repeat}")
            places = _layers(case.model, "bias" if fault.startswith("bias") else "weight")
            if places:
                yield inject(net.name, case, fault, draw.choice(places), draw)


def inject(net: str, case: Case, fault: str, layer: str, draw: random.Random) -> Injection:
    """Plant one fault in a layer of a network and check it."""
    model = case.model
    _plant(model.get_submodule(layer), fault, draw)
    try:
        report = sg.check(model, case.inputs)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:200]
        return Injection(net, fault, layer, None, (), said)
    names = suspects(report)
    right = accepted(model, layer)
    place = next((i for i, name in enumerate(names) if name in right), None)
    own = {layer} | _sharing(model, layer)
    others = [one for one in _layers(model, "weight") if one not in own]
    hits = sum(names[:1] != () and names[0] in accepted(model, one) for one in others)
    exact = names[:1] != () and names[0].removesuffix(".weight").removesuffix(".bias") in own
    chance = hits / max(1, len(others))
    return Injection(net, fault, layer, place, names[:4], summary(report), exact, chance)


def _layers(model: nn.Module, parameter: str) -> list[str]:
    """Names of the layers with this parameter: matrices and kernels; for biases norms, too."""
    least = 1 if parameter == "bias" else 2
    found = []
    for name, module in model.named_modules():
        value = module._parameters.get(parameter)
        if value is not None and value.dim() >= least and not isinstance(module, nn.Embedding):
            found.append(name)
    return found


def _plant(layer: nn.Module, fault: str, draw: random.Random) -> None:
    with torch.no_grad():
        if fault == "NaN":
            weight = layer.get_parameter("weight").view(-1)
            weight[draw.randrange(len(weight))] = math.nan
        elif fault == "bias - 10":
            layer.get_parameter("bias").sub_(10.0)
        else:
            layer.get_parameter("weight").mul_(float(fault.rpartition(" ")[2]))


def suspects(report: Report) -> tuple[str, ...]:
    """Places of all findings in order, each once."""
    everything = (*report.findings, *report.folded)
    return tuple(dict.fromkeys(name for one in everything for name in one.where))


def accepted(model: nn.Module, layer: str) -> set[str]:
    """Return the layer, its parameters, the activation behind it, and the innermost block."""
    owner, _, mine = layer.rpartition(".")
    names = {layer, f"{layer}.weight", f"{layer}.bias"} | _sharing(model, layer)
    children = list(model.get_submodule(owner).named_children())
    position = [name for name, _ in children].index(mine)
    for name, module in children[position + 1 : position + 2]:
        if not list(module.parameters()):
            names.add(f"{owner}.{name}".lstrip("."))
    while owner and isinstance(model.get_submodule(owner), CONTAINERS):
        owner = owner.rpartition(".")[0]
    return names | {owner} - {""}


def _sharing(model: nn.Module, layer: str) -> set[str]:
    """Names of the layers with the same weight: it is as faulty there."""
    weight = model.get_submodule(layer)._parameters.get("weight")
    named = model.named_modules()
    return {name for name, one in named if one._parameters.get("weight") is weight is not None}


def _score(injections: Sequence[Injection]) -> str:
    header = ("", "injected", "first", "in first three", "exact layer first", "control")
    by_net, by_fault = _grouped(injections, "net"), _grouped(injections, "fault")
    rows = [_row(name, group) for name, group in (*by_net.items(), *by_fault.items())]
    return markdown(header, [*rows, _row("all", injections)])


def _grouped(injections: Sequence[Injection], by: str) -> dict[str, list[Injection]]:
    groups: dict[str, list[Injection]] = defaultdict(list)
    for one in injections:
        groups[getattr(one, by)].append(one)
    return groups


def _row(name: str, group: Sequence[Injection]) -> Row:
    first, three = (sum(i.within(most) for i in group) for most in (1, 3))
    chance = sum(i.chance for i in group) / max(1, len(group))
    return name, len(group), first, three, sum(i.exact for i in group), f"{chance:.1%}"


def _misses(injections: Sequence[Injection]) -> str:
    rows = [
        (one.net, one.fault, one.layer, _place(one), one.said)
        for one in injections
        if not one.within(1)
    ]
    return markdown(("network", "fault", "layer", "came", "said"), rows)


def _place(one: Injection) -> str:
    return "never" if one.place is None else f"{one.place + 1}."

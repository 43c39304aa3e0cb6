"""Devices that are described, not measured, and the times of passes that follow from their description."""

from __future__ import annotations

from dataclasses import dataclass

from ssd.errors import SsdError
from ssd.plan.models import PlannedModel
from ssd.simulate.rounds import Setting, Times

USABLE_GB = 0.99 * 2**30  # bytes of a GPU's memory that programs see, for each GB of its name
REACHED = 0.9  # share of the nominal bandwidth at which a pass reads its weights; measured: 0.90 for Llama-3.1-8B on an H100
LAYER_S = 18e-6  # of a pass, for each layer, beside its reads; measured on an H100: 15 to 20 µs
ROW_S = 0.8e-6  # of a pass, for each layer and row after the first; measured on an H100 with 24 rows: 0.7 to 1.1 µs
EXCHANGE_S = 30e-6  # between two passes of the target; measured on an H100: 8 to 28 µs
REDUCE_S = 15e-6  # of summing one layer's part over several devices, twice a layer


@dataclass(frozen=True)
class Device:
    """bytes_per_s: nominal memory bandwidth. memory: bytes. layer_s: latency of a layer's kernels. count: number of them, which
    share one model's weights evenly."""

    name: str
    bytes_per_s: float
    memory: float
    layer_s: float = LAYER_S
    count: int = 1

    def pass_s(self, model: PlannedModel, rows: int, keys: int) -> float:
        """Seconds of a pass over so many rows that reads the K/V of so many tokens in all."""
        read = (model.pass_bytes + keys * model.kv_bytes_a_token) / self.count
        layers = model.config.num_layers
        reduced = 2 * REDUCE_S * layers if self.count > 1 else 0.0
        return read / (REACHED * self.bytes_per_s) + layers * (self.layer_s + ROW_S * (rows - 1)) + reduced


# (bandwidth in GB/s, memory in GB), from the vendor's data sheets.
KNOWN = {
    "A10": (600, 24),
    "L4": (300, 24),
    "L40S": (864, 48),
    "RTX-3090": (936, 24),
    "RTX-4090": (1008, 24),
    "RTX-5090": (1792, 32),
    "A100-40GB": (1555, 40),
    "A100": (2039, 80),
    "H100-PCIe": (2000, 80),
    "H100": (3350, 80),
    "H200": (4800, 141),
}


def described(text: str) -> Device:
    """A known device, or "bandwidth=GB/s,memory=GB[,layer=µs]"; either may begin with a count, "4xH100". Raises SsdError."""
    count, times, name = text.partition("x")
    devices = int(count) if times and count.isdecimal() else 1
    name = name if times and count.isdecimal() else text
    known = {each.lower(): each for each in KNOWN}
    if name.lower() in known:
        bandwidth, memory = KNOWN[known[name.lower()]]
        device = Device(known[name.lower()], bandwidth * 1e9, memory * USABLE_GB, count=devices)
    else:
        device = _parsed(name, devices, text)
    if not 1 <= devices <= 64:
        raise SsdError(f"the device is {text!r}; its count must be from 1 to 64.")
    return device


def _parsed(name: str, devices: int, text: str) -> Device:
    example = f"give one of {', '.join(KNOWN)}, or 'bandwidth=3350,memory=80' in GB/s and GB"
    try:
        values = {key: float(value) for key, value in (part.split("=") for part in name.split(","))}
        bandwidth, memory, layer = values.pop("bandwidth"), values.pop("memory"), values.pop("layer", LAYER_S * 1e6)
    except (ValueError, KeyError):
        raise SsdError(f"the device is {text!r}; {example}.") from None
    if values or not (0 < bandwidth < 1e6 and 0 < memory < 1e6 and 0 <= layer < 1e6):
        raise SsdError(f"the device is {text!r}; {example}.")
    return Device(f"{bandwidth:g} GB/s", bandwidth * 1e9, memory * 1e9, layer / 1e6, devices)


def times(
    setting: Setting,
    target: PlannedModel,
    draft: PlannedModel,
    on: Device,
    draft_on: Device | None,
    context: int,
    link_s: float,
) -> Times:
    """The times of a setting's rounds. draft_on: the draft's device; None if it is the target's. context: number of tokens
    that each sequence has. link_s: latency of a message between two devices."""
    batch, keys = setting.batch, setting.batch * context
    verify = on.pass_s(target, batch * (setting.lookahead + 1), keys)
    token = on.pass_s(target, batch, keys)
    exchange = EXCHANGE_S + (2 * link_s if draft_on is not None else 0.0)
    place = draft_on or on
    step = place.pass_s(draft, batch, keys)
    branch = place.pass_s(draft, batch * max(1, setting.budget), keys)
    if draft_on is None and setting.mode == "ssd":
        reads = target.pass_bytes + (setting.lookahead + 1) * draft.pass_bytes  # of both, from one memory
        verify = max(verify, reads / on.count / (REACHED * on.bytes_per_s))
    return Times(verify * 1e3, token * 1e3, step * 1e3, branch * 1e3, exchange * 1e3)


def assumptions(on: Device, draft_on: Device | None, link: float, context: int, used: float) -> list[str]:
    """What the times and the memory rest on, a sentence each. link: µs. used: share of the memory."""
    found = [
        f"A pass reads its weights and {context} tokens of K/V a sequence at {REACHED:.0%} of {on.bytes_per_s / 1e9:g} GB/s.",
        f"Beside its reads, a pass takes {on.layer_s * 1e6:g} µs a layer, and {ROW_S * 1e6:g} µs for each further row and layer, as "
        "measured on an H100 with this project's kernels.",
        f"Between two passes of the target: {EXCHANGE_S * 1e6:g} µs.",
        f"An engine may use {used:.0%} of a device's memory.",
    ]
    if on.count > 1:
        found.append(
            f"{on.count} devices share the target evenly and add up its parts twice a layer, {REDUCE_S * 1e6:g} µs each. ssd itself "
            "runs a target on one device, so this is a projection."
        )
    if draft_on is not None:
        found.append(f"A message between the two models takes {link:g} µs each way.")
    else:
        found.append(
            "Both models share the memory's bandwidth: a round of ssd takes at least the time of all its reads. The last column "
            f"gives the draft a device of its own, with {link:g} µs a message."
        )
    return found

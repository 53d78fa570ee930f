"""Where and how a run computes: its device, and the dtype of autocast."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from training.settings.common import Common

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNSCALED = torch.amp.GradScaler(enabled=False)


@dataclass(frozen=True)
class Precision:
    """Where and how to compute: a device, and under autocast to `dtype` unless that is float32."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, settings: Common) -> Precision:
        """Resolve `device` and `precision`; a ValueError if the device is not there."""
        name = settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(0, device=device).cpu()  # the meta device makes tensors that cannot be read
        except (RuntimeError, AssertionError, NotImplementedError):
            raise ValueError(
                f"device must be auto, cpu or an available GPU, got {settings.device!r}"
            ) from None
        auto = torch.bfloat16 if cls(device, torch.bfloat16).is_native else torch.float32
        return cls(device, DTYPES.get(settings.precision, auto))

    @property
    def is_native(self) -> bool:
        """Whether the device computes in this precision itself, and does not emulate it."""
        if self.device.type == "cuda":  # all that torch supports compute float16
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return self.dtype != torch.bfloat16 or native
        native = {
            torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
            torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
        }
        return self.dtype not in native or native[self.dtype]()

    def autocast(self) -> torch.autocast:
        """Give the autocast context of this precision."""
        enabled = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.dtype if enabled else None, enabled=enabled)

    def scaler(self) -> torch.amp.GradScaler:
        """Give what keeps small gradients of float16 from becoming 0; it does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def slow_settings(settings: Common, precision: Precision) -> list[str]:
    """Give a line for every setting with which this device crawls; mostly there are none."""
    device, lines = precision.device.type, []
    if not precision.is_native:
        lines.append(
            f"slow: this {device} emulates {settings.precision} (a CPU took ten times as long as "
            "for float32); --precision auto takes what it computes itself"
        )
    if settings.compile and device == "cpu":
        lines.append("slow: --compile takes 30 to 100 s on a CPU, at the start and at every growth")
    return lines

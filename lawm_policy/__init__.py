"""From unlabelled videos to a robot policy: latent actions, world models, controllers, evaluation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. Names load when first used, so that `import lawm_policy` stays
# light: the control process of a robot must not pay for torch.
_HOMES = {
    "Clip": "lawm_policy.types",
    "Demo": "lawm_policy.types",
    "Observation": "lawm_policy.types",
    "UserError": "lawm_policy.types",
    "load_config": "lawm_policy.config",
    "load_policy": "lawm_policy.policies.loading",
    "load_pretrained": "lawm_policy.policies.loading",
    "EpisodeStore": "lawm_policy.data.store",
    "StoreWriter": "lawm_policy.data.store",
    "ClipDataset": "lawm_policy.data.clips",
    "DemoDataset": "lawm_policy.data.clips",
    "TabletopEnv": "lawm_policy.sim.tabletop_env",
    "TrainConfig": "lawm_policy.training",
    "fit": "lawm_policy.training",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lawm_policy.config import load_config as load_config
    from lawm_policy.data.clips import ClipDataset as ClipDataset
    from lawm_policy.data.clips import DemoDataset as DemoDataset
    from lawm_policy.data.store import EpisodeStore as EpisodeStore
    from lawm_policy.data.store import StoreWriter as StoreWriter
    from lawm_policy.policies.loading import load_policy as load_policy
    from lawm_policy.policies.loading import load_pretrained as load_pretrained
    from lawm_policy.sim.tabletop_env import TabletopEnv as TabletopEnv
    from lawm_policy.training import TrainConfig as TrainConfig
    from lawm_policy.training import fit as fit
    from lawm_policy.types import Clip as Clip
    from lawm_policy.types import Demo as Demo
    from lawm_policy.types import Observation as Observation
    from lawm_policy.types import UserError as UserError


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lawm_policy' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

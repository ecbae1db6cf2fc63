"""The policy that acts: a trunk that says latents, a controller that decodes them to commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lawm_policy.controller import CONTROLLERS, ControllerConfig
from lawm_policy.data.normalize import Normalization
from lawm_policy.policies.baku import Baku, BakuConfig
from lawm_policy.policies.ensembling import Ensemble
from lawm_policy.types import Demo, Observation, UserError, within


@dataclass(frozen=True)
class LatentPolicyConfig:
    policy: BakuConfig = field(default_factory=BakuConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    head: Literal["controller", "fresh"] = (
        "controller"  # fresh: commands from the query tokens, past the latents
    )
    execute: int = 2  # latents of each chunk that are executed before the next look
    ensemble: float = 0.0  # temporal ensembling: rate of exp(-rate * age); 0 executes the newest chunk alone
    sees: bool = True  # False: a blind policy, the control that every result needs
    hears: bool = True  # False: no instruction
    choice: float = 0.1  # weight of choosing the component of the mixture that fits
    sharpness: float = 10.0  # how much better a component must fit to be held responsible

    def __post_init__(self) -> None:
        within(self, execute="[1, inf)", ensemble="[0, inf)", choice="[0, inf)", sharpness="[0, inf)")


class LatentPolicy(nn.Module):
    def __init__(self, cfg: LatentPolicyConfig, normalization: Normalization, robot: dict[str, Any]):
        super().__init__()
        self.cfg, self.normalization, self.robot = cfg, normalization, robot
        self.policy = Baku(cfg.policy)
        said = cfg.policy.width if cfg.head == "fresh" else cfg.policy.latent
        state, action = len(robot["state_names"]), len(robot["action_names"])
        self.controller = CONTROLLERS[cfg.controller.kind](
            cfg.controller, cfg.policy.chunk, said, state, action, cfg.policy.width
        )
        self.sha256 = ""  # of the checkpoint it came from
        self.ensemble = Ensemble(cfg.ensemble, cfg.policy.chunk, self.execute)

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.cfg.policy.cameras

    @property
    def size(self) -> int:
        return self.cfg.policy.size

    @property
    def execute(self) -> int:
        """Commands to execute before asking again."""
        return self.cfg.execute * self.cfg.controller.commands_per_latent

    @property
    def commands(self) -> int:
        """Commands of a chunk: no more can be executed."""
        return self.cfg.policy.chunk * self.cfg.controller.commands_per_latent

    def forward(self, demo: Demo) -> dict[str, Tensor]:
        return self.loss(demo)

    def loss(self, demo: Demo) -> dict[str, Tensor]:
        """Masked L1 between normalised commands. Each component of a mixture is decoded and judged; those
        that fit take half of the gradient and the choice moves towards them. The other half goes to the one
        that would be executed: an unlucky choice must not stay an untrained one."""
        commands_BMKRA, log_weight_BM = self._decode(demo, every_component=True)
        target_BKRA = self.normalization.normalize_actions(demo.actions_BKRA, demo.state_BP)
        mask_BMKRA = demo.action_mask_BKR[:, None, :, :, None].expand_as(commands_BMKRA).float()
        error_BMKRA = (commands_BMKRA - target_BKRA[:, None]).abs() * mask_BMKRA
        error_BM = error_BMKRA.sum((2, 3, 4)) / mask_BMKRA.sum((2, 3, 4)).clamp_min(1.0)
        share_BM = (log_weight_BM - self.cfg.sharpness * error_BM).softmax(1).detach()
        fitting = (share_BM * error_BM).sum(1).mean()
        choice = -(share_BM * log_weight_BM).sum(1).mean()
        executed = error_BM.gather(1, log_weight_BM.argmax(1, keepdim=True)).mean()
        return {
            "loss": 0.5 * (fitting + executed) + self.cfg.choice * choice,
            "fitting": fitting.detach(),
            "choice": choice.detach(),
            "executed": executed.detach(),
        }

    def act(self, observation: Observation) -> np.ndarray:
        """(K * R, A) commands, of which the first `execute` are for execution before the next look."""
        return self.ensemble(self.act_batch([observation])[0])

    @torch.no_grad()
    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        """(B, K * R, A): of several robots at once. It keeps no past: each has an `ensemble` of its own."""
        demo = self._as_demo(observations).to(self.device)
        commands_BMKRA, _ = self._decode(demo, every_component=False)
        actions_BKRA = self.normalization.denormalize_actions(commands_BMKRA[:, 0], demo.state_BP)
        return actions_BKRA.flatten(1, 2).cpu().numpy()

    def reset(self) -> None:
        """Forget the past: call at the start of each episode."""
        self.ensemble = self.ensemble.fresh()

    @property
    def device(self) -> torch.device:
        return self.policy.position_ND.device

    def _decode(self, demo: Demo, every_component: bool) -> tuple[Tensor, Tensor]:
        frames = demo.frames_BVCHW if self.cfg.sees else torch.zeros_like(demo.frames_BVCHW)
        text = demo.text if self.cfg.hears else ("",) * len(demo.text)
        said = self.policy(frames, demo.view_mask_BV, text)
        state_BP = self.normalization.normalize_state(demo.state_BP)
        if self.cfg.head == "fresh":
            said_BMKZ = said.query_BKD[:, None]
            log_weight_BM = said_BMKZ.new_zeros(len(text), 1)
        elif every_component:
            said_BMKZ, log_weight_BM = said.mixture.mean_BMKZ, said.mixture.log_weight_BM
        else:
            said_BMKZ = said.mixture.likeliest()[:, None]
            log_weight_BM = said_BMKZ.new_zeros(len(text), 1)
        m = said_BMKZ.shape[1]
        commands = self.controller(
            said_BMKZ.flatten(0, 1),
            state_BP.repeat_interleave(m, dim=0),
            said.view_BVD.repeat_interleave(m, dim=0),
            demo.view_mask_BV.repeat_interleave(m, dim=0),
        )
        return commands.unflatten(0, (-1, m)), log_weight_BM

    def _as_demo(self, observations: Sequence[Observation]) -> Demo:
        b, v = len(observations), len(self.cameras)
        k, r, a = (
            self.cfg.policy.chunk,
            self.cfg.controller.commands_per_latent,
            len(self.robot["action_names"]),
        )
        for observation in observations:
            self._check_complete(observation)
        frames_BVHWC = np.stack([self._views_VHWC(observation) for observation in observations])
        state_BP = np.stack([self._state_P(observation) for observation in observations])
        return Demo(
            frames_BVCHW=torch.from_numpy(frames_BVHWC).permute(0, 1, 4, 2, 3),
            view_mask_BV=torch.ones(b, v, dtype=torch.bool),
            state_BP=torch.as_tensor(state_BP, dtype=torch.float32),
            actions_BKRA=torch.zeros(b, k, r, a),
            action_mask_BKR=torch.zeros(b, k, r, dtype=torch.bool),
            text=tuple(observation["instruction"] for observation in observations),
        )

    def _check_complete(self, observation: Observation) -> None:
        missing = [key for key in ("images", "state", "instruction") if key not in observation]
        if missing:
            found = ", ".join(observation) or "nothing"
            raise UserError(f"expected {missing[0]} in the observation, found {found}: add it")
        if not isinstance(observation["instruction"], str):
            raise UserError(
                f"expected the instruction in words, found {observation['instruction']!r}: give text, or ''"
            )

    def _state_P(self, observation: Observation) -> np.ndarray:
        names = self.robot["state_names"]
        state_P = np.asarray(observation["state"], dtype=np.float32)
        if state_P.shape != (len(names),) or not np.isfinite(state_P).all():
            raise UserError(
                f"expected a state of {len(names)} finite numbers ({', '.join(names)}), found {state_P}: "
                "give what the policy learnt from, in that order"
            )
        return state_P

    def _views_VHWC(self, observation: Observation) -> np.ndarray:
        missing = [name for name in self.cameras if name not in observation["images"]]
        if missing:
            found = ", ".join(observation["images"]) or "none"
            raise UserError(
                f"expected images from {', '.join(self.cameras)}, found {found}: "
                "give the policy the cameras that it was trained with"
            )
        views = [observation["images"][name] for name in self.cameras]
        expected = (self.size, self.size, 3)
        for name, view in zip(self.cameras, views, strict=True):
            if view.shape != expected or view.dtype != np.uint8:
                raise UserError(
                    f"expected camera '{name}' as {expected} uint8, found {view.shape} {view.dtype}: "
                    "resize it first"
                )
        return np.stack(views)

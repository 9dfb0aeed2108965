"""The sizes of a small AR-Flow, and the shapes of what a window of it is conditioned on."""

from rapport.policies.flow import config
from rapport.policies.motion import Layout

LAYOUT = Layout((("expr", 4), ("jaw", 2)), 25, "builtin")
SIZES = config.FlowSizes(
    latent_dim=4,
    downsample=4,
    text_dim=5,
    audio_dim=6,
    hidden=32,
    layers=2,
    heads=4,
    mlp=48,
    window=12,
)
SHAPES = {
    "text": (5,),
    "partner_audio": (48, 6),
    "partner_motion": (12, 4),
    "actor_audio": (48, 6),
}

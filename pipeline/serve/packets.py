"""A face as the UDP packets that other programs read: OSC, VMC, and Unreal's Live Link Face.

Each function takes the 61 numbers of a frame in the order of `livelink.CHANNELS`, 52 weights and
nine angles in radians, and gives the packets that carry it.

Sources: Open Sound Control 1.0 (opensoundcontrol.stanford.edu). VMC: its protocol's Marionette
specification (protocol.vmc.info). Live Link Face: Unreal says in AppleARKitLiveLinkSource.cpp what
a packet holds and in ARTrackable.h, EARFaceBlendShape, in which order; Epic does not document the
bytes. They are as PyLiveLinkFace (github.com/JimWest/PyLiveLinkFace) and a description of real
packets have them, and have not been sent to an Unreal here.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message import OscMessage
from pythonosc.osc_message_builder import OscMessageBuilder
from scipy.spatial.transform import Rotation

from rapport.policies.head.arkit import NAMES
from rapport.policies.head.livelink import ANGLES, CHANNELS

MOST_BYTES = 1400  # of a bundle, which then fits into a packet of an Ethernet
LIVELINK_VERSION = 6
WEIGHTS = CHANNELS[: len(NAMES)]
# Jaw and mouth, left before right: as Unreal counts them, and not as the app's files do.
UNREAL = tuple(name[0].upper() + name[1:] for name in NAMES) + ANGLES
_AS_UNREAL = [CHANNELS.index(name) for name in UNREAL]


def osc(values: np.ndarray) -> list[bytes]:
    """/rapport/arkit/NAME VALUE for each of the 61, in bundles.

    Args:
        values: (61,).
    """
    return _bundles(
        [
            _message(f"/rapport/arkit/{name}", float(value))
            for name, value in zip(CHANNELS, values, strict=True)
        ]
    )


def vmc(values: np.ndarray) -> list[bytes]:
    """The weights under the names of Perfect Sync, and the turn of the bone Head, in bundles.

    The bone's place is given as 0: it is a turn only, and programs leave the place alone. Unity's
    axes are left-handed: x to the person's right, y up, z ahead. By them yaw to the right, pitch
    downwards and roll with the crown to the left are all positive, as in `livelink`.

    Args:
        values: (61,).
    """
    weights = [
        _message("/VMC/Ext/Blend/Val", name, float(value))
        for name, value in zip(WEIGHTS, values, strict=False)
    ]
    head = values[len(WEIGHTS) : len(WEIGHTS) + 3]  # yaw, pitch, roll
    turn = [float(part) for part in Rotation.from_euler("YXZ", head).as_quat()]
    bone = _message("/VMC/Ext/Bone/Pos", "Head", 0.0, 0.0, 0.0, *turn)
    return _bundles([bone, *weights, _message("/VMC/Ext/Blend/Apply")])


def livelink(values: np.ndarray, seconds: float, fps: float, name: str) -> bytes:
    """A packet of Live Link Face, version 6, big endian.

    A byte 6; the device and the subject, each an int32 of its length and UTF-8; the time, int32 of
    whole frames and float32 of the rest; the rate, int32 over int32; a byte 61; float32 each.

    Args:
        values: (61,).
        seconds: since midnight, when the frame is shown.
        fps: frames per second.
        name: of the subject.
    """
    rate = Fraction(fps).limit_denominator(1001)
    frame, rest = divmod(seconds * fps, 1)
    device = str(uuid.uuid5(uuid.NAMESPACE_DNS, name)).upper()
    time = struct.pack(">ifii", int(frame), rest, rate.numerator, rate.denominator)
    numbers = struct.pack(f">B{len(values)}f", len(values), *values[_AS_UNREAL])
    return struct.pack(">B", LIVELINK_VERSION) + _text(device) + _text(name) + time + numbers


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">i", len(encoded)) + encoded


def _message(address: str, *values: str | float) -> OscMessage:
    builder = OscMessageBuilder(address)
    for value in values:
        builder.add_arg(value)
    return builder.build()


def _bundles(messages: Sequence[OscMessage]) -> list[bytes]:
    """Messages in as few bundles as `MOST_BYTES` allow, in their order."""
    sizes = [4 + message.size for message in messages]  # an int32 before each says its size
    ends = [0]
    held = 0
    for number, size in enumerate(sizes):
        if held + size > MOST_BYTES - 16:  # "#bundle" and the time
            ends.append(number)
            held = 0
        held += size
    return [_bundle(messages[begin:end]) for begin, end in pairwise([*ends, len(messages)])]


def _bundle(messages: Sequence[OscMessage]) -> bytes:
    builder = OscBundleBuilder(IMMEDIATELY)
    for message in messages:
        builder.add_content(message)
    dgram: bytes = builder.build().dgram
    return dgram

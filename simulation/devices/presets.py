"""Presets of devices; each number says where it comes from.

Speeds of training on phones are hardly published a second and example for one model, so those
here are assumed, an order below what is measured for a desktop; set ``devices.examples_per_s`` to
what your own devices reach. Rates of failure and bandwidths are from the literature.
"""

from __future__ import annotations

from simulation.devices.classes import PRESETS, DeviceClass, Preset

PRESETS.register("none")(Preset((DeviceClass("any"),)))
"""Infinitely fast, never fails: no time passes. For simulations that ask about learning alone."""

# Source of the drop-out: Bonawitz et al., Towards Federated Learning at Scale: System Design,
# MLSys 2019: 6 to 10 % of the devices drop out of a round. Together 8 % here; which of them are
# crashes is assumed.
_PHONE_DROPOUT_RATE = 0.07
_PHONE_CRASH_RATE = 0.01

PRESETS.register("phones")(
    Preset(
        (
            DeviceClass(
                "low",
                fraction=0.4,  # assumed
                examples_per_s=60,  # assumed
                speed_sigma=0.5,  # assumed
                # Source: Ookla Speedtest Global Index, India in December 2022, mobile: 25.29 and
                # 5.51 Mbit/s, 32 ms; rounded.
                download_mbps=25,
                upload_mbps=5.5,
                latency_s=0.03,
                bandwidth_sigma=0.8,  # assumed
                jitter_sigma=0.2,  # assumed
                # Source: Counterpoint Research, Smartphones Beat DRAM Drum, 2021: phones begin at
                # 2 GB. That training gets an eighth of a phone's memory is assumed.
                memory_mib=256,
                dropout_rate=_PHONE_DROPOUT_RATE,
                crash_rate=_PHONE_CRASH_RATE,
            ),
            DeviceClass(
                "mid",
                fraction=0.4,  # assumed
                examples_per_s=150,  # assumed
                speed_sigma=0.5,  # assumed
                # Source: Ookla, mobile, worldwide: 61.52 Mbit/s down (median, November 2024), 11.22
                # up (mean, September 2020), 28 ms (November 2022); rounded.
                download_mbps=60,
                upload_mbps=11,
                latency_s=0.03,
                bandwidth_sigma=0.8,  # assumed
                jitter_sigma=0.2,  # assumed
                # Source: Counterpoint Research, as above: two of five phones sold in 2020 have 4 to
                # 6 GB.
                memory_mib=768,
                dropout_rate=_PHONE_DROPOUT_RATE,
                crash_rate=_PHONE_CRASH_RATE,
            ),
            DeviceClass(
                "high",
                fraction=0.2,  # assumed
                examples_per_s=400,  # assumed
                speed_sigma=0.5,  # assumed
                # Source: Ookla, Growing and Slowing: The State of 5G Worldwide in 2021: medians of
                # 166.13 and 21.08 Mbit/s over 5G; rounded. The latency is assumed.
                download_mbps=166,
                upload_mbps=21,
                latency_s=0.02,
                bandwidth_sigma=0.8,  # assumed
                jitter_sigma=0.2,  # assumed
                # Source: Counterpoint Research, February 2026: phones above $600 have 11 GB on
                # average; rounded up.
                memory_mib=1536,
                dropout_rate=_PHONE_DROPOUT_RATE,
                crash_rate=_PHONE_CRASH_RATE,
            ),
        ),
        # Phones train while they charge, are idle and on an unmetered network (Bonawitz et al.).
        availability="diurnal",
    )
)
"""Android and iOS phones in three tiers, on mobile networks."""

PRESETS.register("gateways")(
    Preset(
        (
            DeviceClass(
                "wired",
                fraction=0.5,  # assumed
                # Twice the cellular one. Source: Flower Labs, Raspberry Pi 5: Ready for Federated
                # Vision, 2023: training on a Pi 5 is twice as fast as on a Pi 4.
                examples_per_s=800,
                speed_sigma=0.2,  # assumed
                # Source: Ookla, fixed broadband, worldwide means of September 2020: 85.73 and
                # 45.74 Mbit/s, 21 ms; rounded.
                download_mbps=85,
                upload_mbps=45,
                latency_s=0.02,
                bandwidth_sigma=0.5,  # assumed
                jitter_sigma=0.1,  # assumed
                memory_mib=1024,  # an eighth of the 8 GB that a Raspberry Pi 4 or 5 has at most
                dropout_rate=0.01,  # assumed
                crash_rate=0.002,  # assumed
            ),
            DeviceClass(
                "cellular",
                fraction=0.4,  # assumed
                examples_per_s=400,  # assumed: a tenth of the lab's
                speed_sigma=0.2,  # assumed
                # Source: 3GPP LTE category 1: peaks of 10 and 5 Mbit/s. The latency is assumed.
                download_mbps=10,
                upload_mbps=5,
                latency_s=0.05,
                bandwidth_sigma=0.5,  # assumed
                jitter_sigma=0.2,  # assumed
                memory_mib=512,  # assumed
                dropout_rate=0.03,  # assumed
                crash_rate=0.002,  # assumed
            ),
            DeviceClass(
                "constrained",
                fraction=0.1,  # assumed
                examples_per_s=60,  # assumed
                speed_sigma=0.2,  # assumed
                # Source: 3GPP LTE category M1 (LTE-M): peaks of 1 Mbit/s each way. The latency is
                # assumed.
                download_mbps=1,
                upload_mbps=1,
                latency_s=0.1,
                bandwidth_sigma=0.5,  # assumed
                jitter_sigma=0.2,  # assumed
                memory_mib=64,  # assumed
                dropout_rate=0.05,  # assumed
                crash_rate=0.005,  # assumed
            ),
        )
    )
)
"""Single-board computers that are always on, behind a wire or a modem."""

PRESETS.register("lab")(
    Preset(
        (
            DeviceClass(
                "desktop",
                # Measured on this project's 2-core x86-64 machine: 70 clients of 60 examples a
                # second, one after another on both cores; rounded.
                examples_per_s=4000,
                speed_sigma=0.1,  # assumed
                download_mbps=1000,  # gigabit Ethernet
                upload_mbps=1000,
                latency_s=0.001,  # assumed
                bandwidth_sigma=0.1,  # assumed
                jitter_sigma=0.05,  # assumed
                memory_mib=4096,  # assumed
            ),
        )
    )
)
"""Like machines on one network, which do not fail."""

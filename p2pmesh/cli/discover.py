"""``members --discover``: what mDNS offers on this network, whoever says it.

It needs no node.  Nothing that it prints is verified: an advertisement is a claim,
and a killed process stays advertised for a while.
"""

from __future__ import annotations

import asyncio
from typing import Final

from p2pmesh.cli.call import Call
from p2pmesh.config import DEFAULT_MESH
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.transport.discovery import Offer, browse_for
from p2pmesh.transport.interfaces import choose, read_interfaces

BROWSE_SECONDS: Final = 2.0


def discover(call: Call) -> int:
    mesh = call.settings.mesh
    hosts = choose(read_interfaces(), open_mesh=False).advertised
    offers = asyncio.run(browse_for(BROWSE_SECONDS, hosts))
    names = {KeyRing(name).mesh_id.hex(): name for name in (DEFAULT_MESH, mesh) if name}
    shown = [offer for offer in offers if mesh is None or names.get(offer.mesh_id) == mesh]
    if call.settings.json:
        call.out.object(
            {"verified": False, "offers": [_offer_object(offer, names) for offer in shown]}
        )
    elif not shown:
        of_mesh = "" if mesh is None else f" of mesh {mesh!r}"
        call.out.text(f"mDNS offers no node{of_mesh} here")
    else:
        rows = [_offer_row(offer, names) for offer in shown]
        call.out.table(("NODE", "MESH", "MODE", "ADDRESSES", ""), rows, style_by=4)
    return 0


def _offer_object(offer: Offer, names: dict[str, str]) -> dict[str, object]:
    return {
        "node_id": offer.node_id.hex() if offer.node_id else None,
        "mesh": names.get(offer.mesh_id),
        "mesh_id": offer.mesh_id,
        "mode": offer.mode,
        "addresses": offer.addresses,
    }


def _offer_row(offer: Offer, names: dict[str, str]) -> tuple[str, ...]:
    return (
        offer.node_id.hex()[:12] if offer.node_id else "?",
        names.get(offer.mesh_id, f"#{offer.mesh_id}"),  # only a hash of the name is told
        offer.mode,
        " ".join(offer.addresses),
        "unverified",
    )

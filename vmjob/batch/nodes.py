"""Which worker nodes a job is for, by what they say of themselves (ads.node_ad): requirements and rank in HTCondor's
language. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmjob.ads import site_ad
from vmjob.ads.site_ad import KVM, NodeAd
from vmjob.core import classads
from vmjob.core.model import Network
from vmjob.core.pool_errors import NoSlotFits
from vmjob.core.units import MIB, format_size


@dataclass(frozen=True)
class Needs:
    """What a job asks of a node beside CPUs, memory and disk of its slot. ``memory``: bytes of the guest. ``kvm``: fail
    rather than crawl; ``emulated``: KVM is of no use. ``network_must``: a guest is of no use without, as that of a
    glide-in."""

    memory: int = 0
    network: str = Network.NONE.value
    network_must: bool = False
    kvm: bool = False
    emulated: bool = False


@dataclass(frozen=True)
class Said:
    """What is known of a target's nodes. ``speak``: some say what they do with VMs; ``networks``: that some of these
    give."""

    speak: bool = False
    networks: tuple[str, ...] = ()


def said_by(nodes: Sequence[NodeAd]) -> Said:
    """From what a collector has. A node that is offline now comes back."""
    return Said(bool(nodes), tuple(sorted({word for node in nodes for word in node.networks})))


def requirements(needs: Needs, said: Said) -> str:
    """A ClassAd expression. Nodes that say nothing are refused where others speak; where nobody does they are all there
    is, and what one says counts as soon as it says so. A network that no node gives is not asked for unless it must be:
    most jobs do not use theirs."""
    parts = [f"TARGET.{site_ad.HAS} {'=?= true' if said.speak else '=!= false'}",
             f"stringListIMember(MY.Owner, TARGET.{site_ad.FAILING}) =!= true"]
    if needs.memory:
        parts.append(f"(TARGET.{site_ad.MAX_MEMORY} >= {-(-needs.memory // MIB)}) =!= false")
    if needs.kvm:
        parts.append(f'(TARGET.{site_ad.ACCEL} == "{KVM}") =!= false')
    if needs.network_must or needs.network in said.networks:
        # of a list that is not there HTCondor 23 says that nothing is in it
        parts.append(f"(TARGET.{site_ad.NETWORKS} =?= undefined || "
                     f"stringListMember({classads.literal(needs.network)}, TARGET.{site_ad.NETWORKS}) =!= false)")
    return " && ".join(parts)


def rank(needs: Needs, digest: str) -> str:
    """A ClassAd expression: real KVM first, then nodes that have the image, then those with the network."""
    parts = [] if needs.emulated else [(f'TARGET.{site_ad.ACCEL} =?= "{KVM}"', 4)]
    parts += [(f"stringListMember({classads.literal(digest)}, TARGET.{site_ad.IMAGES}) =?= true", 2),
              (f"stringListMember({classads.literal(needs.network)}, TARGET.{site_ad.NETWORKS}) =?= true", 1)]
    return " + ".join(f"({condition} ? {weight} : 0)" for condition, weight in parts)


def check(needs: Needs, nodes: Sequence[NodeAd], place: str) -> None:
    """Raises NoSlotFits where there are nodes that speak, and not one would ever do. Those that are offline count: they
    come back."""
    if not nodes or not all(node.checked for node in nodes):
        return  # one that could not find out may yet do; nor does one that is offline know of its KVM
    if needs.kvm and all(node.has and node.accel != KVM for node in nodes):
        raise NoSlotFits(f"the job asks for KVM (accel: kvm), and none of the {len(nodes)} nodes at {place} has it: "
                         f"{nodes[0].reason or 'their guests are emulated'}",
                         "with accel: auto the job runs emulated, much slower; or choose another target")
    most = max(node.max_memory for node in nodes)
    if needs.memory > most:
        raise NoSlotFits(f"the job asks for a guest with {format_size(needs.memory)} memory, the largest that the "
                         f"{len(nodes)} nodes at {place} allow has {format_size(most)}",
                         "lower resources.memory (--memory), or choose another target: it would wait for ever")
    if needs.network_must and not any(needs.network in node.networks for node in nodes):
        raise NoSlotFits(f"the job needs the network {needs.network}, which none of the {len(nodes)} nodes at {place} "
                         "gives", "choose another target: it would wait for ever")

package agent

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"eboot/bootproto"
)

// network is an IPv4 address of this machine, and the network that it is in.
type network struct {
	prefix    netip.Prefix // the address itself, not masked
	broadcast bool         // one packet reaches all that are in it
}

// localNetworks are those of all interfaces that are up, loopback excepted.
func localNetworks() ([]network, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var networks []network
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue // it is gone since
		}
		for _, a := range addresses {
			ipnet, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			bits, _ := ipnet.Mask.Size()
			address, ok := netip.AddrFromSlice(ipnet.IP)
			if address = address.Unmap(); ok && address.Is4() && !address.IsLoopback() {
				networks = append(networks, network{prefix: netip.PrefixFrom(address, bits), broadcast: i.Flags&net.FlagBroadcast != 0 && bits < 31})
			}
		}
	}
	// Those where slaves may be come first, should there be too many.
	slices.SortStableFunc(networks, func(a, b network) int { return cmp.Compare(number(b.broadcast), number(a.broadcast)) })
	return networks, nil
}

// last is the broadcast address of the network.
func (n network) last() netip.Addr {
	a := n.prefix.Addr().As4()
	for i := n.prefix.Bits(); i < 32; i++ {
		a[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(a)
}

// within reports whether slaves in the network are answered by a server that is bound to binds.
func (n network) within(binds []netip.Addr) bool {
	return slices.Contains(binds, netip.IPv4Unspecified()) || slices.Contains(binds, n.prefix.Addr())
}

// maxProbed bounds the networks that are asked at once.
const maxProbed = 16

// probeTargets are the networks in which binds answer slaves, each once. Of loopback addresses
// there are none.
func probeTargets(binds []netip.Addr, networks []network) []bootproto.ProbeTarget {
	var targets []bootproto.ProbeTarget
	for _, n := range networks {
		to := n.last()
		again := slices.ContainsFunc(targets, func(t bootproto.ProbeTarget) bool { return t.To == to })
		if n.broadcast && n.within(binds) && !again && len(targets) < maxProbed {
			targets = append(targets, bootproto.ProbeTarget{From: n.prefix.Addr(), To: to})
		}
	}
	return targets
}

// bootAddresses are those at which a server that is bound to binds answers slaves, as far as
// others can reach it.
func bootAddresses(binds []netip.Addr) []netip.Addr {
	if !slices.Contains(binds, netip.IPv4Unspecified()) {
		return slices.Clone(binds)
	}
	networks, err := localNetworks()
	if err != nil {
		return nil
	}
	told := make([]netip.Addr, 0, len(networks))
	for _, n := range networks {
		told = append(told, n.prefix.Addr())
	}
	return told
}

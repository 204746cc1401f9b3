package bootproto

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// controlSpace is room for the control message that a datagram comes with.
func controlSpace() []byte {
	return make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
}

// askedAddress returns the address of ours that a datagram was sent to: the
// destination, or for a broadcast the address of the network it came through
// (ip(7), ipi_spec_dst). A slave opens TCP to the address that the reply comes
// from.
func askedAddress(oob []byte) (netip.Addr, bool) {
	for len(oob) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return netip.Addr{}, false
		}
		if header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo {
			return netip.AddrFrom4([4]byte(data[4:8])), true
		}
		oob = rest
	}
	return netip.Addr{}, false
}

// sourceControl is the control message that makes a datagram leave from an IPv4
// address of ours. The interface is left to the routing table.
func sourceControl(source netip.Addr) []byte {
	return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: source.As4()})
}

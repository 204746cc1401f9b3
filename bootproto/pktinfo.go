package bootproto

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// sizeofDrops is the size of a number of dropped datagrams (socket(7), SO_RXQ_OVFL).
const sizeofDrops = 4

// controlSpace is room for the control messages that a datagram comes with.
func controlSpace() []byte {
	return make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo)+unix.CmsgSpace(sizeofDrops))
}

// arrival is what the control messages of a datagram say.
type arrival struct {
	asked netip.Addr // the address of ours that it was sent to; zero: not said
	drops uint32     // datagrams that the socket dropped before, modulo 2³²; none: it is 0
}

// parseArrival reads them. The address asked is the destination, or for a broadcast the
// address of the network it came through (ip(7), ipi_spec_dst). A slave opens TCP to
// the address that the reply comes from.
func parseArrival(oob []byte) (a arrival) {
	for len(oob) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return a
		}
		switch {
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			a.asked = netip.AddrFrom4([4]byte(data[4:8]))
		case header.Level == unix.SOL_SOCKET && header.Type == unix.SO_RXQ_OVFL && len(data) >= sizeofDrops:
			a.drops = binary.NativeEndian.Uint32(data)
		}
		oob = rest
	}
	return a
}

// sourceControl is the control message that makes a datagram leave from an IPv4
// address of ours. The interface is left to the routing table.
func sourceControl(source netip.Addr) []byte {
	return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: source.As4()})
}
